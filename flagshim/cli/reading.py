"""What commands share that read a trace: which one, since when, and a sign of life meanwhile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from flagshim.cli.output import Progress
from flagshim.durations import seconds_of
from flagshim.reports.text import printable
from flagshim.trace.location import latest_trace, state_directory
from flagshim.trace.reader import TraceReader

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INT64_MAX = 2**63 - 1
"""SQLite's largest integer, and the year 2262 in nanoseconds."""


def _moment(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Return a moment in the past, in nanoseconds since the epoch, or None if none is given.

    A time without a zone is local, a date is its midnight.
    """
    if text is None:
        return None
    try:
        ago = seconds_of(text)
        if ago is not None:
            moment = time.time_ns() - ago * 10**9
        else:
            since_epoch = datetime.fromisoformat(text).astimezone(UTC) - _EPOCH
            moment = since_epoch // timedelta(microseconds=1) * 1000
    except (ValueError, OverflowError, OSError) as error:
        raise click.BadParameter(
            f"{text!r} is neither a length of time back from now (90s, 15m, 2h, 3d) "
            "nor a date or time (2024-11-21, 2024-11-21T08:30)",
            context,
            option,
        ) from error
    return max(-INT64_MAX, min(moment, INT64_MAX))


trace_argument = click.argument("trace", required=False, type=click.Path(path_type=Path))


def since_option(what: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return the option --since WHEN, as nanoseconds since the epoch, or None."""
    return click.option(
        "--since",
        callback=_moment,
        metavar="WHEN",
        help=f"{what}: a length of time back from now (90s, 15m, 2h, 3d), or a local date or "
        "time (2024-11-21, 2024-11-21T08:30).",
    )


@contextmanager
def reading(trace: Path | None, doing: str = "reading") -> Iterator[tuple[TraceReader, Progress]]:
    """Open a trace, the latest one if none is named; on a terminal, show that work goes on.

    Args:
        trace: which one.
        doing: what is shown to be done with it.

    Raises:
        FlagshimError: it is not one that can be read.
    """
    file = trace or latest_trace(state_directory())
    with (
        Progress(f"{doing} {printable(str(file))}") as progress,
        TraceReader(file, progress.tick) as reader,
    ):
        yield reader, progress
