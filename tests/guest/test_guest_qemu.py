"""Debian's QEMU as an ordinary user: by itself it is refused and asks again, and with flagshim not.

Each guest is booted once; the tests look at what came of it.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flagshim.trace.events import Reason

from .image import Image
from .refusals import Asked, Trace, by_file, flagshim_prefix, strace_prefix
from .share import FILES
from .vm import Guest, GuestResult, Outcome, boot


@pytest.fixture(scope="module")
def strace_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strace") / "log"


@pytest.fixture(scope="module")
def alone(guest_image: Image, guest_share: Path, strace_log: Path) -> GuestResult:
    return boot(Guest(guest_image, guest_share, prefix=strace_prefix(strace_log)))


@pytest.fixture(scope="module")
def asked(alone: GuestResult, strace_log: Path, asked_by: Callable[[Path], Asked]) -> Asked:
    assert alone.outcome is Outcome.REPORTED, alone.account
    return asked_by(strace_log)


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Path:
    return tmp_path_factory.mktemp("trace") / f"{engine}.db"


@pytest.fixture(scope="module")
def supervised(guest_image: Image, guest_share: Path, trace_file: Path, engine: str) -> GuestResult:
    prefix = flagshim_prefix(trace_file, engine=engine)
    return boot(Guest(guest_image, guest_share, prefix=prefix, user=None))


@pytest.fixture(scope="module")
def trace(supervised: GuestResult, trace_file: Path) -> Trace:
    assert supervised.outcome is Outcome.REPORTED, supervised.account
    return Trace.read(trace_file)


def test_alone_every_step_in_the_guest_passes(alone: GuestResult) -> None:
    assert alone.outcome is Outcome.REPORTED, alone.account
    assert alone.steps
    assert not alone.failed, alone.account
    assert alone.exit_status == 0, alone.account


def test_alone_qemu_is_refused_whenever_it_asks(asked: Asked) -> None:
    assert asked.refused == asked.all
    assert asked.refused > FILES


def test_supervised_every_step_in_the_guest_passes(supervised: GuestResult) -> None:
    assert supervised.outcome is Outcome.REPORTED, supervised.account
    assert not supervised.failed, supervised.account
    assert supervised.exit_status == 0, supervised.account


def test_supervised_the_guest_takes_the_same_steps(
    alone: GuestResult, supervised: GuestResult
) -> None:
    assert list(supervised.steps) == list(alone.steps)


@pytest.mark.usefixtures("asked")
def test_each_open_is_cleared_exactly_once(trace: Trace, guest_share: Path) -> None:
    expected = {str(guest_share / f"files/{at:05}"): 1 for at in range(FILES)}
    opened = by_file(trace.cleared, "openat")
    assert {path: n for path, n in opened.items() if path in expected} == expected


def test_each_open_has_its_f_setfl(trace: Trace) -> None:
    # openat_file() in QEMU's hw/9pfs/9p-util.h sets the guest's flags once more to drop its own
    # O_NONBLOCK, and asserts that this succeeds.
    assert by_file(trace.cleared, "fcntl") == by_file(trace.cleared, "openat")


def test_what_is_cleared_is_what_was_refused(asked: Asked, trace: Trace) -> None:
    # Two programs that know nothing of each other count the same opens.
    assert by_file(trace.cleared, "openat").total() == asked.refused


@pytest.mark.usefixtures("asked")
def test_nothing_but_o_noatime_is_cleared(trace: Trace) -> None:
    assert {event.flags_before & ~event.flags_after for event in trace.cleared} == {os.O_NOATIME}
    assert {event.flags_after & ~event.flags_before for event in trace.cleared} == {0}


def test_the_kernel_is_asked_again_only_where_it_refused(trace: Trace) -> None:
    tries: dict[str, int] = {Reason.REFUSED: 2, Reason.PREDICTED: 1}
    assert [event for event in trace.cleared if event.tries != tries.get(event.reason)] == []


def test_qemu_sees_no_refusal(trace: Trace) -> None:
    assert trace.refused == []


def test_the_trace_is_complete(trace: Trace, engine: str) -> None:
    assert trace.engine == engine
    assert trace.lost == 0
    assert trace.seen == len(trace.events)
    assert trace.exit_status == 0


def test_bench_mode_reads_and_measures(guest_image: Image, guest_share: Path) -> None:
    result = boot(Guest(guest_image, guest_share, mode="bench", files=101))
    assert result.outcome is Outcome.REPORTED, result.account
    assert result.steps["read-once"].ok, result.account
    assert result.steps["read-once"].detail == "101"
    assert result.guest_seconds is not None, result.account
    assert 0 < result.guest_seconds < result.seconds
