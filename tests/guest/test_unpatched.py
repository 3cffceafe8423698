"""The QEMU that flagshim is for: without its fallback it fails every read of an overlay."""

from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "unpatched.db"


@pytest.fixture(scope="module")
def supervised(guest_image: Image, guest_share: Path, trace_file: Path) -> GuestResult:
    prefix = flagshim_prefix(trace_file)
    return boot(Guest(guest_image, guest_share, qemu=unpatched_qemu(), prefix=prefix, user=None))


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


def test_supervised_every_step_in_the_guest_passes(supervised: GuestResult) -> None:
    assert supervised.outcome is Outcome.REPORTED, supervised.account
    assert not supervised.failed, supervised.account


def test_supervised_qemu_meets_no_failed_assertion(supervised: GuestResult) -> None:
    assert "ssertion" not in supervised.stderr, supervised.account
    assert supervised.exit_status == 0, supervised.account


@pytest.mark.usefixtures("alone")
def test_supervised_each_open_and_its_f_setfl_are_cleared(
    supervised: GuestResult, trace_file: Path
) -> None:
    assert supervised.outcome is Outcome.REPORTED, supervised.account
    trace = Trace.read(trace_file)
    opened = by_file(trace.cleared, "openat")
    assert len(opened) > FILES
    assert by_file(trace.cleared, "fcntl") == opened
    assert trace.refused == []
