"""The QEMU that flagshim is for: without its fallback it fails every read of an overlay."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from flagshim.probes import reason_notify_unavailable
from tests.support import require

from .image import Image
from .refusals import Asked, Trace, by_file, flagshim_prefix, strace_prefix
from .requirements import unpatched_obstacle
from .share import FILES, PARALLEL_READERS
from .vm import Guest, GuestResult, Outcome, boot, unpatched_qemu

pytestmark = pytest.mark.unpatched


@pytest.fixture(scope="module", autouse=True)
def _unpatched() -> None:
    require("unpatched", unpatched_obstacle())


@pytest.fixture(scope="module")
def alone(
    guest_image: Image,
    guest_share: Path,
    tmp_path_factory: pytest.TempPathFactory,
    asked_by: Callable[[Path], Asked],
) -> GuestResult:
    log = tmp_path_factory.mktemp("strace") / "log"
    prefix = strace_prefix(log)
    result = boot(Guest(guest_image, guest_share, qemu=unpatched_qemu(), prefix=prefix))
    assert result.outcome is Outcome.REPORTED, result.account
    assert asked_by(log).refused > FILES
    return result


class Supervised(NamedTuple):
    """A boot under flagshim."""

    result: GuestResult
    trace_file: Path

    @property
    def trace(self) -> Trace:
        assert self.result.outcome is Outcome.REPORTED, self.result.account
        return Trace.read(self.trace_file)


@pytest.fixture(scope="module")
def booted(
    guest_image: Image, guest_share: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Supervised]:
    """The boot with an engine; whoever asks first pays for it."""

    @functools.cache
    def once(engine: str) -> Supervised:
        trace_file = tmp_path_factory.mktemp("trace") / f"{engine}.db"
        prefix = flagshim_prefix(trace_file, engine=engine)
        guest = Guest(guest_image, guest_share, qemu=unpatched_qemu(), prefix=prefix, user=None)
        return Supervised(boot(guest), trace_file)

    return once


@pytest.fixture(scope="module")
def supervised(booted: Callable[[str], Supervised], engine: str) -> Supervised:
    return booted(engine)


def test_alone_every_read_fails(alone: GuestResult) -> None:
    read = alone.steps["read-lower"]
    assert not read.ok
    assert read.detail.startswith(f"0/{FILES} "), read
    assert read.detail.endswith("Operation not permitted"), read
    readers = alone.steps["read-parallel"]
    assert readers.detail.startswith(f"0/{PARALLEL_READERS} readers"), readers


@pytest.mark.parametrize(
    "step", ["append", "write-inside", "change-mode", "run-script", "run-static", "follow-symlink"]
)
def test_alone_what_needs_a_lower_file_fails(alone: GuestResult, step: str) -> None:
    assert not alone.steps[step].ok
    assert "Operation not permitted" in alone.steps[step].detail


@pytest.mark.parametrize("step", ["mount-overlay", "list", "new-file", "read-back", "unlink-lower"])
def test_alone_what_needs_no_lower_file_passes(alone: GuestResult, step: str) -> None:
    assert alone.steps[step].ok, alone.account


def test_alone_qemu_lives_to_the_end(alone: GuestResult) -> None:
    assert alone.exit_status == 0, alone.account


def test_supervised_every_step_in_the_guest_passes(supervised: Supervised) -> None:
    result = supervised.result
    assert result.outcome is Outcome.REPORTED, result.account
    assert not result.failed, result.account
    assert result.steps["read-lower"].detail == f"{FILES}/{FILES}"


def test_supervised_the_guest_takes_the_same_steps(
    alone: GuestResult, supervised: Supervised
) -> None:
    assert list(supervised.result.steps) == list(alone.steps)


def test_supervised_qemu_meets_no_failed_assertion(supervised: Supervised) -> None:
    result = supervised.result
    assert "ssertion" not in result.stderr, result.account
    assert result.exit_status == 0, result.account


@pytest.mark.usefixtures("alone")
def test_supervised_each_open_and_its_f_setfl_are_cleared(
    supervised: Supervised, engine: str
) -> None:
    trace = supervised.trace
    assert trace.engine == engine
    opened = by_file(trace.cleared, "openat")
    assert len(opened) > FILES
    assert by_file(trace.cleared, "fcntl") == opened
    assert trace.refused == []
    assert (trace.lost, trace.seen, trace.exit_status) == (0, len(trace.events), 0)


@pytest.mark.usefixtures("alone")
def test_both_engines_clear_the_same(booted: Callable[[str], Supervised]) -> None:
    require("notify", reason_notify_unavailable())
    by_ptrace, by_listener = booted("ptrace").trace, booted("notify").trace
    for syscall in ("openat", "fcntl"):
        counts = by_file(by_listener.cleared, syscall)
        assert counts == by_file(by_ptrace.cleared, syscall)
        assert counts.total() == len(by_listener.events) / 2
