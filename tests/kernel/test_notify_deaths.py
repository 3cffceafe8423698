"""The notify engine: supervisors, guards and idle pollers that die, again and again."""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flagshim import tracee
from flagshim.engines.notify.idlepoll import IdlePoller
from flagshim.probes import reason_notify_unavailable
from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.storms import PROCESSES, THREADS, Storm, guards_of, hold, new_log, times_in
from tests.kernel.ways import status_of
from tests.processes import children, name_of, role_of
from tests.support import REPOSITORY, require, rows, wait_until

KILLS, OPENS = 101, 100_003
ENDLESS = 2_000_003
"""Opens of a storm that goes on until it is ended."""


@pytest.fixture(autouse=True)
def can_listen() -> None:
    require("notify", reason_notify_unavailable())


@pytest.fixture
def start(run: Runner, build: Build, place: Place) -> Iterator[Callable[..., Storm]]:
    storms: list[Storm] = []

    def start_(mode: str, opens: int, held: int = 1) -> Storm:
        engine = ("--engine", "notify")
        storm = Storm(run, build("endure"), place, mode, *engine, opens=opens, held=held)
        storms.append(storm)
        wait_until(storm.supervisors)
        return storm

    yield start_
    for storm in storms:
        storm.end()


def supervisors_among(pids: list[int]) -> list[int]:
    return [pid for pid in pids if role_of(pid).startswith("supervisor of ")]


@pytest.mark.parametrize("mode", ["run", "exec"])
def test_supervisor_killed_again_and_again(start: Callable[..., Storm], mode: str) -> None:
    """No open fails, none hangs, each is in the trace once; one line says that it happened."""
    opens = OPENS if mode == "run" else OPENS // 3
    workers = PROCESSES * THREADS
    step = opens // workers // (KILLS + 5)
    storm = start(mode, opens, held=KILLS * step)
    guard = storm.process.pid if mode == "run" else wait_until(storm.guards)[0]
    done = 0
    for kill in range(KILLS):
        storm.hold((KILLS - kill) * step)  # the storm does not get far ahead of the kills
        wait_until(lambda kill=kill, done=done: storm.done() > max(done, kill * step * workers))
        supervisor = random.choice(wait_until(lambda: supervisors_among(children(guard))))
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda supervisor=supervisor: tracee.has_ended(supervisor))  # not killed twice
        done = storm.done()  # nor is one killed that nobody was served before
    storm.release()
    _, err = storm.process.communicate(timeout=SECONDS)
    assert storm.process.returncode == 7, err
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    times = storm.times()
    assert len(times) == opens
    assert min(times) > 0, "none failed"
    assert rows(storm.trace, "SELECT seen, lost, exit_status FROM session") == [(opens, 0, 7)]
    assert rows(storm.trace, "SELECT decision, count(*) FROM event GROUP BY 1") == [
        ("cleared", opens)
    ]
    assert rows(storm.trace, "PRAGMA integrity_check") == [("ok",)]
    assert rows(storm.trace, "SELECT kind FROM blind_spot") == []
    deaths = rows(
        storm.trace, "SELECT count(*) FROM trouble WHERE text LIKE 'supervisor % killed%'"
    )
    assert deaths == [(KILLS,)]
    if mode == "run":
        assert err.count(b"was killed by signal 9; ") == 1


def test_nobody_reads_what_the_guard_says(start: Callable[..., Storm]) -> None:
    """CMD has filled the pipe: the guard does not wait for a reader while opens wait for it."""
    storm = start("run", OPENS // 5)
    storm.fill_stderr()
    former = supervisors_among(children(storm.process.pid))
    for supervisor in former:
        os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: set(supervisors_among(children(storm.process.pid))) - set(former))
    wait_until(lambda: len(storm.times()) == storm.opens - PROCESSES * THREADS)
    told = "SELECT count(*) FROM trouble WHERE text LIKE 'supervisor % killed%'"
    wait_until(lambda: rows(storm.trace, told) == [(len(former),)])  # after it had tried to say so
    assert storm.process.stderr
    os.read(storm.process.stderr.fileno(), 1 << 20)  # from now on there is room
    storm.release()
    wait_until(lambda: len(storm.times()) == storm.opens)
    assert min(storm.times()) > 0, "none failed"
    _, err = storm.process.communicate(timeout=SECONDS)
    assert b"was killed by signal" not in err
    assert f"{storm.opens} of {storm.opens} opens rewritten".encode() in err


def test_guard_killed(start: Callable[..., Storm]) -> None:
    """The supervisor takes its place: no open fails; what was on its way to the trace may be lost.

    `flagshim run` is the guard, so that nobody is left to say how the program ended.
    """
    storm = start("run", OPENS // 5)
    wait_until(lambda: len(storm.times()) > storm.opens // 3)
    os.kill(storm.process.pid, signal.SIGKILL)
    (guard,) = wait_until(storm.guards)
    died = "SELECT count(*) FROM trouble WHERE text LIKE 'the guard died; %'"
    wait_until(lambda: rows(storm.trace, died) == [(1,)])  # it tells of itself after its start
    os.kill(guard, signal.SIGKILL)
    storm.release()
    wait_until(lambda: not storm.threads())
    storm.process.communicate(timeout=SECONDS)  # all that have its stderr, so the keepers too
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    times = storm.times()
    assert len(times) == storm.opens
    assert min(times) > 0, "none failed"
    assert rows(storm.trace, died) == [(2,)]
    assert storm.opens - 2 * 5_003 < storm.events() <= storm.opens
    lost = storm.opens - storm.events()
    assert rows(storm.trace, "SELECT seen, lost FROM session") == [(storm.opens, lost)]
    assert rows(storm.trace, "PRAGMA integrity_check") == [("ok",)]


def test_guard_killed_again_and_again(build: Build, place: Place, folder: Path) -> None:
    """There is one at a time, no open fails, and no event is in the trace twice.

    Each is killed just after it has started its first supervisor, which may not be one yet.
    """
    opens, kills, processes = OPENS // 3, 31, 1009  # with the dead whom init has not reaped
    storm = Storm(
        Runner(folder), build("endure"), place, "run", "--engine", "notify",
        opens=opens, processes=processes,
    )  # fmt: skip
    try:
        guard = storm.process.pid
        wait_until(lambda: has_started_one(guard))
        for _ in range(kills):
            os.kill(guard, signal.SIGKILL)
            wait_until(lambda guard=guard: tracee.has_ended(guard))
            (guard,) = wait_until(lambda: list(filter(has_started_one, storm.guards())))
        storm.release()
        wait_until(lambda: not storm.threads())
        wait_until(lambda: tracee.has_ended(guard))
    finally:
        storm.end()
    assert min(storm.times()) > 0, "none failed"
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    lost = opens - storm.events()
    assert rows(storm.trace, "SELECT seen, lost FROM session") == [(opens, lost)]
    assert rows(storm.trace, "PRAGMA integrity_check") == [("ok",)]
    texts = [text for (text,) in rows(storm.trace, "SELECT text FROM trouble")]
    told = sum(text.startswith("the guard died; ") for text in texts)
    assert 0 < told <= kills, "some had not come to say so"


def has_started_one(guard: int) -> bool:
    """Tell whether a guard has started a supervisor, which may still have the guard's title."""
    roles = map(role_of, children(guard))
    return any(role.startswith(("supervisor of ", "guard of ")) for role in roles)


def test_guard_killed_while_supervisors_wait_for_a_filesystem(
    fuse_layers: tuple[list[str], Path], run: Runner, build: Build, place: Place
) -> None:
    """Its server makes calls itself, so that who comes next must not wait for them in turn."""
    opens, processes, threads, kills = 10_007, 3, 2, 13
    some = opens - processes * threads - 1  # less than those that need not be released
    argv, mount = fuse_layers
    for path in (mount.parent / "lower", mount.parent / "lower" / "file"):  # not the server's
        os.chown(path, 1, 1)
    log = place.path / "log"
    new_log(log, opens, held=1)
    script = (
        'mount=$1; shift; setpriv --bounding-set -fowner --inh-caps -fowner "$@" & '
        "until mountpoint -q $mount; do :; done;"
        f"setpriv --reuid {NOBODY} --clear-groups {build('endure')}"
        f" {processes} {threads} {opens} $mount/file {log};"
        " until umount $mount 2>/dev/null; do :; done; wait"
    )
    command = run.command(["sh", "-c", script, "sh", str(mount), *argv], "--engine", "notify",
                          user=None)  # fmt: skip
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    wait_until(lambda: len(times_in(log)) > opens // 101)
    guard = process.pid
    (shell,) = (pid for pid in children(guard) if name_of(pid) == "sh")
    for _ in range(kills):
        done = min(len(times_in(log)), some)
        os.kill(guard, signal.SIGKILL)
        wait_until(lambda guard=guard: tracee.has_ended(guard))
        (guard,) = wait_until(lambda: list(filter(has_started_one, guards_of(shell))))
        wait_until(lambda done=done: len(times_in(log)) > done)
    hold(log, 0)
    wait_until(lambda: tracee.has_ended(shell))
    wait_until(lambda: tracee.has_ended(guard))
    process.communicate(timeout=SECONDS)
    assert len(times_in(log)) == opens
    assert min(times_in(log)) > 0, "none failed"
    ((seen, lost),) = rows(run.trace, "SELECT seen, lost FROM session")
    assert rows(run.trace, "SELECT count(*) FROM event") == [(seen - lost,)]


def pollers_among(pids: list[int]) -> set[int]:
    return {pid for pid in pids if role_of(pid).startswith("idle poller of ")}


def test_a_cpu_is_kept_awake(start: Callable[..., Storm]) -> None:
    """By one process at a time, of the lowest priority. Killed, it is started again."""
    require("smp", None if IdlePoller.is_worth_it() else "one CPU only, or a quota (cpu.max)")
    storm = start("run", ENDLESS)
    guard = storm.process.pid
    seen: set[int] = set()
    for _ in range(5):
        (poller,) = wait_until(lambda: pollers_among(children(guard)) - seen)
        wait_until(lambda poller=poller: os.sched_getscheduler(poller) == os.SCHED_IDLE)
        seen.add(poller)
        os.kill(poller, signal.SIGKILL)
    seen |= wait_until(lambda: pollers_among(children(guard)) - seen)
    storm.end()
    wait_until(lambda: all(tracee.has_ended(poller) for poller in seen))
    assert min(storm.times()) > 0, "no open failed"
    assert rows(storm.trace, "SELECT count(*) FROM trouble") == [(0,)]


def test_the_next_guard_keeps_a_cpu_awake(start: Callable[..., Storm]) -> None:
    """Nobody but it could, and nothing is left of the former one, not even if it is stopped."""
    require("smp", None if IdlePoller.is_worth_it() else "one CPU only, or a quota (cpu.max)")
    storm = start("run", ENDLESS)
    (former,) = wait_until(lambda: pollers_among(children(storm.process.pid)))
    os.kill(former, signal.SIGSTOP)
    wait_until(lambda: status_of(former, "State")[0] == "T")
    os.kill(storm.process.pid, signal.SIGKILL)
    wait_until(lambda: tracee.has_ended(former))
    (guard,) = wait_until(storm.guards)
    (poller,) = wait_until(lambda: pollers_among(children(guard)))
    storm.end()
    wait_until(lambda: tracee.has_ended(guard))
    wait_until(lambda: tracee.has_ended(poller))
    assert min(storm.times()) > 0, "no open failed"
