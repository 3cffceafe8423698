"""Options that several commands share, and what becomes of them."""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from flagshim import status
from flagshim.errors import FlagshimError
from flagshim.reports.text import command_line
from flagshim.saying import say_in_passing
from flagshim.session import Outcome

COMMAND_SETTINGS = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}
"""For commands that take a CMD: what follows it is CMD's."""
_PATIENCE_SECONDS = 1.0
"""How long the last line waits for somebody to read what is before it."""

user_option = click.option(
    "-u", "--user", metavar="USER", help="Start CMD as USER (root only)."
)  # fmt: skip


def trace_option(default: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return the option -o FILE, whose absence means `default`."""
    return click.option(
        "-o",
        "--output",
        "trace",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help=f"Add a session to the trace FILE, made if missing. Default: {default}.",
    )


def _listen(context: click.Context, option: click.Parameter, fd: int | None) -> None:
    if fd is None:
        return
    try:
        status.report_to(fd)
    except OSError as error:
        raise click.BadParameter(f"{fd}: {error.strerror}", context, option) from None


status_option = click.option(
    "--status-fd",
    metavar="FD",
    type=click.IntRange(min=3),
    is_eager=True,
    expose_value=False,
    callback=_listen,
    help="Say what is to be said on descriptor FD, in JSON lines, and nothing on stderr.",
)
"""For programs that start flagshim, above all supervised.py."""


def _complete_command(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer programs for the first word of CMD, as a shell does, and files for the others."""
    if context.params.get("cmd") or "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    names = set()
    for folder in os.get_exec_path():
        with contextlib.suppress(OSError):
            names |= {name for name in os.listdir(folder) if name.startswith(incomplete)}
    return [CompletionItem(name) for name in sorted(names)]


def seconds_option(default: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return the option --for SECONDS; `default` says what ends the command without it."""

    def checked(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise FlagshimError(f"--for {value}: not a number of seconds", "as in --for 60")
        return value

    return click.option(
        "--for",
        "seconds",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        callback=checked,
        help=f"End after so many seconds. Default: {default}.",
    )


command_argument = click.argument(
    "cmd",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="-- CMD [ARG]...",
    shell_complete=_complete_command,
)


def command_from(cmd: tuple[str, ...], example: str) -> tuple[str, ...]:
    """Return CMD.

    Raises:
        FlagshimError: there is none.
    """
    if not cmd:
        raise FlagshimError("no CMD", f"as in {example}")
    return cmd


def sum_up(outcome: Outcome, trace: Path) -> None:
    """Print the last line on stderr: how many, of how many, and what to type next."""
    if status.tell("end", **asdict(outcome)):
        return
    noun = "open" if outcome.seen == 1 else "opens"
    parts = [f"{outcome.cleared} of {outcome.seen} {noun} rewritten"]
    if outcome.still_refused:
        parts.append(f"{outcome.still_refused} failed all the same")
    if outcome.not_rescued:
        parts.append(f"{outcome.not_rescued} not rescued")
    if outcome.lost:
        parts.append(f"{outcome.lost} not in the trace ({outcome.trouble})")
    # The caller may read only once we have ended.
    say_in_passing(f"{', '.join(parts)}; see: {report_on(trace)}", _PATIENCE_SECONDS)


def report_on(trace: Path) -> str:
    """Return what to type to see a trace."""
    return command_line(["flagshim", "report", str(trace)])
