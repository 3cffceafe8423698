"""`flagshim diagnose`."""

import os
import sys
from pathlib import Path

import click

from flagshim.cli.options import (
    COMMAND_SETTINGS,
    command_argument,
    seconds_option,
    trace_option,
    user_option,
)
from flagshim.engines.command import find_user
from flagshim.errors import FlagshimError
from flagshim.reports.diagnosis import text_of
from flagshim.trace.location import new_trace

_SECONDS = 10.0
"""How long running processes are looked at if nobody says."""


@click.command(
    context_settings=COMMAND_SETTINGS,
    epilog="Example: flagshim diagnose -p $(pidof qemu-system-x86_64)",
)
@click.option("-p", "--pid", "pids", metavar="PID", multiple=True, type=click.IntRange(min=1),
              help="This running process and what it starts; repeatable.")  # fmt: skip
@click.option("--all", "all_", is_flag=True, help="Every process on this machine.")
@click.option("--trace", "stored", metavar="FILE", type=click.Path(path_type=Path),
              help="Opens that a trace holds already.")  # fmt: skip
@seconds_option(f"{_SECONDS:g}; with CMD, when it and all it started have ended")
@user_option
@trace_option("with CMD a new file in $XDG_STATE_HOME/flagshim, else none")
@command_argument
def diagnose(
    pids: tuple[int, ...],
    all_: bool,
    stored: Path | None,
    seconds: float | None,
    user: str | None,
    trace: Path | None,
    cmd: tuple[str, ...],
) -> int:
    """Find out why opens fail with EPERM, and what would help.

    Looks for a while at running processes (-p, --all), at CMD while it runs, or at a stored
    trace, and says: how many opens were refused and how fast; for each kind of refusal the
    cause, how sure that is and from what it is concluded, and commands that would help; and
    what could not be seen.

    Looking takes BPF: root, bcc (Debian: python3-bpfcc) and kernel headers. Where that cannot
    be had, CMD is run under ptrace instead, which shows opens with O_NOATIME only.

    Exit status: 0 once it has looked, whatever it found; 125 if it could not, 126 or 127 if
    CMD could not be executed or was not found.
    """
    if sum((bool(pids or all_), stored is not None, bool(cmd))) != 1:
        raise FlagshimError(
            "name what to look at, and one thing only", "-p PID, --all, --trace FILE, or -- CMD"
        )
    if cmd and seconds is not None:
        raise FlagshimError("--for together with CMD", "timeout SECONDS flagshim diagnose -- CMD")
    from flagshim.diagnosis import sessions  # noqa: PLC0415  (run is to start quickly)

    if sys.stdout is None:
        raise FlagshimError("standard output is closed", "redirect it to a file")
    # A copy: what a supervisor has of CMD's output is closed while CMD runs.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", errors="backslashreplace")
    if stored is not None:
        diagnosis = sessions.of_trace(stored)
    elif cmd:
        as_user = find_user(user) if user is not None else None
        diagnosis = sessions.of_command(cmd, as_user, trace or new_trace(cmd[0]))
    else:
        diagnosis = sessions.of_processes(pids, all_, seconds or _SECONDS, trace)
    with out:
        out.write(text_of(*diagnosis))
    return 0
