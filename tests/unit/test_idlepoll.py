"""The process that keeps an idle CPU awake: when it polls, when it rests, and what ends it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagshim.engines.notify import idlepoll
from flagshim.engines.notify.idlepoll import POLL_SECONDS, IdlePoller, Pace, has_quota
from flagshim.engines.notify.lanes import Lanes
from flagshim.tracee import has_ended
from tests.processes import children, role_of
from tests.support import wait_until

COMMAND = "7 (program)"


@pytest.fixture
def lanes() -> Lanes:
    return Lanes()


@pytest.fixture
def alarm() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are none, as well."""
    monkeypatch.setattr(idlepoll, "has_quota", lambda _: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.fixture
def poller(lanes: Lanes, alarm: int) -> Iterator[IdlePoller]:
    poller = IdlePoller(lanes, alarm, COMMAND)
    yield poller
    ours = pollers()
    poller.end()
    for pid in ours:
        with contextlib.suppress(ChildProcessError):  # it has been reaped
            os.waitpid(pid, 0)


def pollers() -> list[int]:
    """IDs of the pollers that are children of ours."""
    tids = map(int, os.listdir("/proc/self/task"))
    ours = [child for tid in tids for child in children(os.getpid(), tid)]
    return [pid for pid in ours if role_of(pid).startswith("idle poller of 7 ")]


def has_rung(alarm: int) -> bool:
    try:
        return os.eventfd_read(alarm) > 0
    except BlockingIOError:
        return False


def test_only_quick_calls_wake_it(
    lanes: Lanes, alarm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(lanes, alarm)
    lanes.poller_rests = True
    now = 1009.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for _ in range(3):
        pace.step()
        now += POLL_SECONDS * 1.01
    assert not has_rung(alarm)
    assert lanes.quick_calls == 0
    now -= POLL_SECONDS * 0.02
    pace.step()
    assert has_rung(alarm)
    assert lanes.quick_calls == 1


def test_it_is_not_woken_while_it_polls(
    lanes: Lanes, alarm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees for itself that there are more."""
    pace = Pace(lanes, alarm)
    monkeypatch.setattr(time, "perf_counter", lambda: 1009.0)
    lanes.poller_rests = False
    for _ in range(7):
        pace.step()
    assert not has_rung(alarm)
    assert lanes.quick_calls == 6


def test_it_polls_as_long_as_calls_come(lanes: Lanes, alarm: int, poller: IdlePoller) -> None:
    poller.start()
    (pid,) = wait_until(pollers)

    def polls_for_long() -> bool:  # unless one of us gets no CPU in between
        os.eventfd_write(alarm, 1)
        end = time.monotonic() + 101 * POLL_SECONDS
        while time.monotonic() < end:
            lanes.count_quick_call()
            polls = not lanes.poller_rests
        return polls

    for _ in range(3):
        wait_until(polls_for_long)
        wait_until(lambda: lanes.poller_rests)
        wait_until(lambda: "poll" in Path(f"/proc/{pid}/wchan").read_text())
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert not has_rung(alarm)
    poller.look_after()
    assert not poller.is_wanted


def test_killed_it_is_wanted_again(lanes: Lanes, poller: IdlePoller) -> None:
    assert poller.is_wanted
    poller.start()
    wait_until(pollers)
    poller.look_after()
    assert not poller.is_wanted
    wait_until(lambda: lanes.poller_rests)
    lanes.poller_rests = False
    os.kill(*pollers(), signal.SIGKILL)
    wait_until(lambda: poller.look_after() or poller.is_wanted)
    assert lanes.poller_rests, "the next quick call rings"


def test_without_its_policy_it_does_not_poll(
    lanes: Lanes, poller: IdlePoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any other it would take CPU from programs."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    poller.start()
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    poller.look_after()
    assert not poller.is_wanted
    assert not lanes.poller_rests, "nobody rings in vain"
    poller.end()  # there is none


def test_without_another_process(
    lanes: Lanes, poller: IdlePoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", refuse)
    poller.start()
    poller.look_after()
    assert not poller.is_wanted
    assert not lanes.poller_rests
    poller.end()


@pytest.mark.parametrize("stopped", [False, True])
def test_it_ends_with_its_parent(lanes: Lanes, alarm: int, stopped: bool) -> None:
    told, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        IdlePoller(lanes, alarm, COMMAND).start()
        wait_until(pollers)
        os.write(tell, b"%d" % pollers()[0])
        signal.pause()
    pid = int(os.read(told, 16))
    wait_until(lambda: os.sched_getscheduler(pid) == os.SCHED_IDLE)
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_until(lambda: has_ended(pid))
    os.close(told)
    os.close(tell)


def test_its_successor_is_rung_for(lanes: Lanes, alarm: int) -> None:
    """Whatever the former one was doing when it was killed together with its parent."""
    lanes.poller_rests = False
    assert IdlePoller(lanes, alarm, COMMAND).is_wanted
    assert lanes.poller_rests


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, False),
        ({"a/b": "max 100000\n", "a": "max 100000\n"}, False),
        ({"a/b": "50000 100000\n"}, True),
        ({"a": "50000 100000\n", "a/b": "max 100000\n"}, True),
        ({"": "50000 100000\n"}, True),
        ({"a/b/c": "50000 100000\n"}, False),
    ],
)
def test_quota(tmp_path: Path, limits: dict[str, str], expected: bool) -> None:
    """Of our group, and of all that it is in."""
    for group, text in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(text)
    mine = tmp_path / "mine"
    mine.write_bytes(b"2:cpu:/caf\xe9\n0::/a/b\n")
    assert has_quota(tmp_path, mine) is expected
    mine.write_text("2:cpu:/\n")
    assert not has_quota(tmp_path, mine)


def test_group_whose_name_is_no_text(tmp_path: Path) -> None:
    group = tmp_path / os.fsdecode(b"caf\xe9")
    group.mkdir()
    (group / "cpu.max").write_text("50000 100000\n")
    mine = tmp_path / "mine"
    mine.write_bytes(b"0::/caf\xe9\n")
    assert has_quota(tmp_path, mine)


@pytest.mark.parametrize(("cpus", "quota"), [({0}, False), ({0, 1}, True)])
def test_where_it_is_of_no_use(
    lanes: Lanes, alarm: int, monkeypatch: pytest.MonkeyPatch, cpus: set[int], quota: bool
) -> None:
    monkeypatch.setattr(idlepoll, "has_quota", lambda _: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    assert not IdlePoller(lanes, alarm, COMMAND).is_wanted
    assert not lanes.poller_rests, "nobody rings in vain"
