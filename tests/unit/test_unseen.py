"""Calls that go on unlooked at: what they may change is supposed to be so."""

import os

import pytest

from flagshim.engines.notify.lanes import Lanes
from flagshim.engines.notify.listener import Gone, Notification
from flagshim.engines.notify.serving import Server
from flagshim.engines.notify.standing import Standings
from flagshim.engines.notify.unseen import leave_unseen
from flagshim.engines.policy import Policy
from flagshim.engines.roster import Roster
from flagshim.rules import BUILT_IN

X86_64, I386 = 0xC000003E, 0x40000003
LANDLOCK = 446
SETGROUPS = [(X86_64, 116), (I386, 81), (I386, 206)]


class OneCall:
    """A listener of one call."""

    def __init__(self, is_waiting: bool = True) -> None:
        self.waits = is_waiting
        self.went_on = False

    def is_waiting(self, _: int) -> bool:
        return self.waits

    def let_go_on(self, _: int) -> None:
        if not self.waits:
            raise Gone
        self.went_on = True


def call(arch: int, number: int, tid: int = 0) -> Notification:
    return Notification(7919, tid or os.getpid(), number, arch, 0, (0,) * 6)


@pytest.mark.parametrize(("arch", "number"), SETGROUPS)
def test_anybody_may_have_other_groups(arch: int, number: int) -> None:
    lanes, listener = Lanes(), OneCall()
    leave_unseen(call(arch, number), listener, lanes)  # type: ignore[arg-type]
    assert listener.went_on
    assert lanes.someone_changed_groups


@pytest.mark.parametrize("known_since", [None, 7919])
def test_anybody_may_be_confined(known_since: int | None) -> None:
    lanes, listener = Lanes(), OneCall()
    if known_since:
        lanes.confine_someone(known_since, no_new_privs=True)
    leave_unseen(call(X86_64, LANDLOCK), listener, lanes)  # type: ignore[arg-type]
    assert listener.went_on
    assert lanes.someone_confined
    assert lanes.confined_since == 0, "since ever"
    assert not lanes.confined_all_with_no_new_privs


def test_the_dead_change_nothing() -> None:
    lanes, listener = Lanes(), OneCall(is_waiting=False)
    leave_unseen(call(X86_64, LANDLOCK), listener, lanes)  # type: ignore[arg-type]
    assert not lanes.someone_confined


@pytest.mark.parametrize("number", [116, LANDLOCK])
def test_supervisor_that_cannot_look(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no descriptor left, say."""

    def fails(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Standings, "of", fails)
    lanes, listener = Lanes(), OneCall()
    lane = next(iter(lanes))
    read_end, poke = os.pipe()
    server = Server(Policy((BUILT_IN,)), listener, lanes, lane, Roster(), poke)  # type: ignore[arg-type]
    server.serve(call(X86_64, number), patient=False)
    os.close(read_end)
    os.close(poke)
    assert listener.went_on
    assert lanes.someone_changed_groups if number == 116 else lanes.someone_confined
