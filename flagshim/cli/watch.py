"""`flagshim watch`."""

import contextlib
import errno
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from flagshim.cli.options import seconds_option
from flagshim.errors import FlagshimError
from flagshim.openflags import bits_of, known_flag
from flagshim.reports.live import Display, Lines, Screen
from flagshim.reports.text import command_line
from flagshim.rules import MACHINE
from flagshim.saying import say

_NUMBERS = {name: number for number, name in errno.errorcode.items()}


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: flagshim watch -p $(pidof qemu-system-x86_64)",
)
@click.option("-p", "--pid", "pids", metavar="PID", multiple=True, type=click.IntRange(min=1),
              help="This process and what it starts from then on; repeatable.")  # fmt: skip
@click.option("--cgroup", metavar="PATH", type=click.Path(),
              help="What is in this folder of /sys/fs/cgroup, or below it.")  # fmt: skip
@click.option("--all", "all_", is_flag=True, help="Every process on this machine.")
@click.option("--program", "programs", metavar="NAME", multiple=True,
              help="Of those, only threads of this command name (ps -o comm); "
              "repeatable.")  # fmt: skip
@click.option("--errno", "errnos", metavar="NAME", multiple=True,
              help="Opens that fail so; any for every failure, none for those that succeed; "
              "repeatable. Default: EPERM and EACCES.")  # fmt: skip
@click.option("--flag", "flags", metavar="FLAG", multiple=True,
              help="Only opens with this flag, as O_NOATIME; repeatable.")  # fmt: skip
@seconds_option("^C, or the end of the last PID")
@click.option("-o", "--output", "trace", metavar="FILE", type=click.Path(path_type=Path),
              help="Add them to the trace FILE, too.")  # fmt: skip
def watch(
    pids: tuple[int, ...],
    cgroup: str | None,
    all_: bool,
    programs: tuple[str, ...],
    errnos: tuple[str, ...],
    flags: tuple[str, ...],
    seconds: float | None,
    trace: Path | None,
) -> int:
    """Show opens that are refused, as they happen: rate, programs, paths, errnos.

    BPF programs in the kernel look at every open of the processes named, and tell of those
    that fail with EPERM or EACCES. Nothing is changed and nobody is stopped. On a terminal
    the sums are drawn anew each second; in a pipe each open is a line.

    Needs root, bcc (Debian: python3-bpfcc) and kernel headers; see flagshim doctor.

    Exit status: 0 once it is ended; 125 if it could not look.
    """
    if not (pids or cgroup or all_):
        raise FlagshimError("nobody to watch", "name a process with -p, a --cgroup, or --all")
    from flagshim.engines.bpf.observer import Selection  # noqa: PLC0415  (run is to start quickly)
    from flagshim.watching import Watch  # noqa: PLC0415

    selection = Selection(
        pids, cgroup, all_, programs, _errno_numbers(errnos), _flag_bits(flags)
    )  # fmt: skip
    look = Watch(selection, trace)
    what = [f"PID {pid}" for pid in pids] + ["all processes"] * all_
    if cgroup:
        what.append(cgroup)
    names = ", ".join(what)
    with _display(names) as display:
        result = look.processes(
            seconds,
            lambda _, event: display.show(event),
            lambda: display.tick(look.returned(), look.lost()),
            lambda: display.begin(names),
        )
        display.tick(result.returned, result.lost)
    failed = result.returned.total() - result.returned[0]
    noun = "open" if result.returned.total() == 1 else "opens"
    said = f"{result.returned.total()} {noun}, {failed} failed, {result.told} told of"
    if result.lost:
        said += f", {result.lost} more were lost: flagshim did not keep up"
    if skipped := result.misses["call"]:
        said += f", the kernel left out {skipped} calls of any process"
    if trace is not None:
        if result.not_stored > result.lost:
            said += f", {result.not_stored - result.lost} not in the trace ({result.trouble})"
        said += "; see: " + command_line(["flagshim", "report", str(trace)])
    say(said)
    return 0


@contextlib.contextmanager
def _display(what: str) -> Iterator[Display]:
    out = sys.stdout
    if out is None:
        raise FlagshimError("standard output is closed", "redirect it to a file")
    out.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not out.isatty():
        yield Lines(out)
        return
    with Screen(out, what, shutil.get_terminal_size()).shown() as screen:
        yield screen


def _errno_numbers(names: tuple[str, ...]) -> tuple[int, ...]:
    if not names:
        return (errno.EPERM, errno.EACCES)
    from flagshim.engines.bpf.observer import ANY_FAILURE  # noqa: PLC0415

    found: list[int] = []
    for name in names:
        if name == "any":
            found += ANY_FAILURE
        elif name == "none":
            found.append(0)
        elif name.upper() in _NUMBERS:
            found.append(_NUMBERS[name.upper()])
        else:
            raise FlagshimError(f"--errno {name}: no such error", "a name of errno(3), any or none")
    return tuple(found)


def _flag_bits(names: tuple[str, ...]) -> int:
    bits = 0
    for name in names:
        if not known_flag(name) or name in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"):
            raise FlagshimError(f"--flag {name}: not a flag of open(2)", "as in --flag O_NOATIME")
        bits |= bits_of(name, MACHINE)
    return bits
