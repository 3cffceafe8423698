"""Who is traced, for the supervisor and for who comes after it."""

import os

from flagshim.engines.roster import Roster


def test_what_one_process_notes_another_reads() -> None:
    roster = Roster()
    pid = os.fork()
    if pid == 0:
        for tid in (1, 7, 4_194_303):
            roster.add(tid)
        roster.remove(7)
        roster.command_started(7919)
        os._exit(0)
    os.waitpid(pid, 0)
    assert roster.tids() == {1, 4_194_303}, "pid_max may be raised to 4,194,304 while we run"
    assert (roster.command, roster.status) == (7919, 0)
    roster.command_ended(256)
    assert (roster.command, roster.status) == (0, 256)
