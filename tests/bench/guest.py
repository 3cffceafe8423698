"""A whole program: QEMU, whose guest reads files by 9p with an overlay on top of it."""

from dataclasses import dataclass, replace
from functools import partial

from flagshim.errors import FlagshimError
from tests.bench.contestants import Bench, Contestant
from tests.bench.quiet import Quiet
from tests.bench.rounds import Series, take_turns
from tests.guest.image import image
from tests.guest.requirements import obstacle
from tests.guest.share import share
from tests.guest.vm import Guest, Outcome, boot

FILES = 2_003
QUICK_FILES = 503
TIMEOUT = 180.0

CONTESTANTS = (
    Contestant.NATIVE,
    Contestant.PRELOAD,
    Contestant.STRACE_BPF,
    Contestant.FLAGSHIM,
    Contestant.NOTIFY,
)
"""Not strace by itself, which would stop all that an emulator does."""


@dataclass(frozen=True)
class Reading:
    """What reading the files once took."""

    seconds: Series
    """By the guest's clock, without the boot."""
    files: int
    release: str
    """Of the guest's kernel."""


def measure(bench: Bench, rounds: int, quick: bool, quiet: Quiet) -> Reading | str:
    """Boot a guest for each contestant and round; return the reason where none can be.

    Raises:
        FlagshimError: a guest did not come to its end.
    """
    if reason := obstacle():
        return reason
    try:
        kernel = image()
    except FlagshimError as error:
        return str(error)
    files = QUICK_FILES if quick else FILES
    with share(files) as folder:
        guest = Guest(kernel, folder, user=None, mode="bench", files=files, timeout=TIMEOUT)
        turns = {how: partial(_read, bench, how, guest) for how in CONTESTANTS}
        return Reading(take_turns(turns, rounds, quiet), files, kernel.release)


def _read(bench: Bench, how: Contestant, guest: Guest) -> float:
    bench.clear()
    result = boot(replace(guest, prefix=tuple(bench.prefix(how, bench.user))))
    if result.outcome is not Outcome.REPORTED or result.failed or result.guest_seconds is None:
        raise FlagshimError(f"{how}: the guest {result.outcome}\n{result.account}", "try make demo")
    if int(result.steps["read-once"].detail) != guest.files:
        raise FlagshimError(f"{how}: the guest read too few files", "try make demo")
    return result.guest_seconds
