"""`flagshim attach`."""

import math
from pathlib import Path

import click

from flagshim.cli.options import sum_up, trace_option
from flagshim.cli.supervision import Asked, supervision_options
from flagshim.engines.policy import Fate
from flagshim.errors import FlagshimError
from flagshim.session import attach as attach_to
from flagshim.trace.location import new_trace


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: flagshim attach --for 60 $(pidof qemu-system-x86_64)",
)
@click.option("--for", "seconds", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
              help="Leave the process after so many seconds. Default: when it ends.")  # fmt: skip
@trace_option("a new file")
@supervision_options
@click.argument("pid", type=click.IntRange(min=1))
def attach(
    pid: int,
    seconds: float | None,
    trace: Path | None,
    asked: Asked,
) -> int:
    """Supervise a running process, its threads, and from then on its children.

    ^C, SIGTERM or the end of --for leaves it as it was. Nothing is put into the process, so
    every system call it makes stops twice: it is slowed down much more than under run.

    Exit status: 0 once it is left or has ended; 125 if it could not be traced.
    """
    if seconds is not None and math.isnan(seconds):
        raise FlagshimError("--for nan: not a number of seconds", "as in --for 60")
    file = trace or new_trace(f"pid{pid}")
    sum_up(attach_to(pid, asked.supervision(file, Fate.CONTINUE), seconds), file)
    return 0
