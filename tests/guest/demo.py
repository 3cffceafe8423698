"""`make demo`: one guest booted without flagshim and with it, and what the kernel said each time.

    python -m tests.guest.demo [--unpatched] [--dry-run] [-o TRACE]

Exits with 1 if the figures are not what they should be.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from flagshim.errors import EXIT_FAILURE, FlagshimError
from tests.support import flagshim_command

from . import cache
from .image import image
from .kernel import VARIABLE
from .refusals import Asked, Trace, by_file, count_asked, flagshim_prefix, strace_prefix
from .requirements import obstacle, unpatched_obstacle
from .share import FILES, make_share, share
from .vm import DEBIAN_QEMU, Guest, GuestResult, Outcome, boot, qemu_command, unpatched_qemu


def main() -> int:
    options = _options()
    qemu = unpatched_qemu() if options.unpatched else DEBIAN_QEMU
    try:
        if problem := unpatched_obstacle() if options.unpatched else obstacle():
            raise FlagshimError("no guest can be booted here", problem)
        if options.dry_run:
            return _show_commands(qemu, options.output)
        with tempfile.TemporaryDirectory(prefix="flagshim-demo-") as scratch, share() as folder:
            trace = options.output
            if trace is None:  # the last one's, which may still be looked at
                trace = cache.folder() / "demo.db"
                trace.unlink(missing_ok=True)
            elif trace.exists():
                raise FlagshimError(f"{trace} exists", "remove it, or name another file with -o")
            return _compare(Guest(image(), folder, qemu), Path(scratch), trace.absolute())
    except FlagshimError as error:
        print(f"demo: {error}", file=sys.stderr)
        return EXIT_FAILURE


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.guest.demo", description=__doc__)
    parser.add_argument("--unpatched", action="store_true", help="the QEMU of make qemu-unpatched")
    parser.add_argument("--dry-run", action="store_true", help="print the QEMU commands only")
    parser.add_argument("-o", "--output", metavar="TRACE", type=Path, help="file for the trace")
    return parser.parse_args()


def _show_commands(qemu: tuple[str, ...], trace: Path | None) -> int:
    # Not the folder of a run, which is gone afterwards: one that is there when this is pasted.
    folder = cache.folder() / "demo-share"
    make_share(folder)
    guest = Guest(image(), folder, qemu)
    file = (trace or Path(tempfile.gettempdir(), "flagshim-demo.db")).absolute()
    supervised = replace(guest, prefix=flagshim_prefix(file), user=None)
    print("# without flagshim")
    print(shlex.join(qemu_command(guest)))
    print("# with flagshim")
    print(shlex.join(qemu_command(supervised)))
    return 0


def _compare(guest: Guest, scratch: Path, trace_file: Path) -> int:
    print("A folder of root's files goes by 9p to a guest that puts overlayfs on top of it.")
    print(f"  QEMU   {_version(guest.qemu)}, run as {guest.user}")
    print(f"  guest  Linux {guest.image.release}\n")

    log = scratch / "strace.log"
    alone = boot(replace(guest, prefix=strace_prefix(log)))
    asked = count_asked(log)
    _tell("Without flagshim, strace counting", alone)
    _figure(asked.refused, "opens refused by the kernel: EPERM, for O_NOATIME")

    supervised = boot(replace(guest, prefix=flagshim_prefix(trace_file), user=None))
    _tell("\nWith flagshim", supervised)
    if not trace_file.exists():
        raise FlagshimError(f"flagshim left no trace\n{supervised.account}")
    trace = Trace.read(trace_file)
    _figure(len(trace.refused), "opens refused by the kernel")
    opened = by_file(trace.cleared, "openat").total()
    _figure(opened, "opens made without O_NOATIME instead")
    _figure(len(trace.cleared) - opened, "F_SETFL of the same descriptors, too\n")

    words = ["report", str(trace_file)]
    print(f"$ flagshim {shlex.join(words)}", flush=True)
    reported = subprocess.run([*flagshim_command(), *words], stdin=subprocess.DEVNULL, check=False)

    wrong = _unexpected(guest, alone, asked, supervised, trace)
    if reported.returncode:
        wrong.append(f"flagshim report exited with {reported.returncode}")
    for problem in wrong:
        print(f"demo: {problem}", file=sys.stderr)
    return 1 if wrong else 0


def _unexpected(
    guest: Guest, alone: GuestResult, asked: Asked, supervised: GuestResult, trace: Trace
) -> list[str]:
    """What is not as it should be, a line each."""
    wrong = []
    if not asked.all:
        wrong.append(f"Linux {guest.image.release} hands no O_NOATIME on to 9p; unset {VARIABLE}")
    elif asked.refused <= FILES:
        wrong.append(f"alone: {asked.refused} refusals, expected more than {FILES}")
    if alone.outcome is not Outcome.REPORTED:
        wrong.append(f"alone: the guest {alone.outcome}\n{alone.account}")
    elif guest.qemu == DEBIAN_QEMU and alone.failed:
        wrong.append(f"alone: steps failed\n{alone.account}")
    elif guest.qemu != DEBIAN_QEMU and not alone.steps["read-lower"].detail.startswith("0/"):
        wrong.append(f"alone: expected every read to fail\n{alone.account}")
    if supervised.outcome is not Outcome.REPORTED or supervised.failed or supervised.exit_status:
        wrong.append(f"with flagshim: not every step passed\n{supervised.account}")
    if trace.refused:
        wrong.append(f"with flagshim: {len(trace.refused)} refusals, expected none")
    if len(trace.cleared) <= FILES:
        wrong.append(f"with flagshim: {len(trace.cleared)} calls cleared, expected more")
    return wrong


def _tell(title: str, result: GuestResult) -> None:
    print(f"{title} ({result.seconds:.1f} s; the guest {result.outcome})")
    read = result.steps.get("read-lower")
    _figure(read.detail.partition("/")[0] if read else "no", f"of {FILES} files read in the guest")
    passed = len(result.steps) - len(result.failed)
    _figure(passed, f"of {len(result.steps)} steps passed in the guest")
    if read and not read.ok:
        print(f"         {read.detail.partition(' ')[2]}")


def _figure(number: int | str, what: str) -> None:
    print(f"  {number:>6} {what}", flush=True)


def _version(qemu: tuple[str, ...]) -> str:
    said = subprocess.run([qemu[0], "--version"], capture_output=True, text=True, check=False)
    return said.stdout.partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
