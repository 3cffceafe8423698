"""flagshim report: what a trace says."""

import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from flagshim.cli.output import ending_as_coreutils, standard_output
from flagshim.durations import seconds_of
from flagshim.reports import csvfile, jsonfile, table
from flagshim.reports.view import Selection, View
from flagshim.trace.location import latest_trace, state_directory
from flagshim.trace.reader import TraceReader

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64_MAX = 2**63 - 1
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
    return max(-_INT64_MAX, min(moment, _INT64_MAX))


@click.command()
@click.argument("trace", required=False, type=click.Path(path_type=Path))
@click.option(
    "--view",
    type=click.Choice([str(view) for view in View]),
    default=str(View.SUMMARY),
    show_default=True,
    help="Sessions and what was opened most; each open; opens by file; opens by program.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="For people; for programs, with every name exact; for spreadsheets.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the newest N sessions or opens, or the N most frequent paths or programs. "
    f"[default: {table.LIMIT} in a table other than of events, else all]",
)
@click.option(
    "--since",
    callback=_moment,
    metavar="WHEN",
    help="Only opens from then on, and sessions that went on until then: a length of time back "
    "from now (90s, 15m, 2h, 3d), or a local date or time (2024-11-21, 2024-11-21T08:30).",
)
def report(
    trace: Path | None, view: str, format_: str, limit: int | None, since: int | None
) -> None:
    """Show what a trace says; without TRACE, the latest in the state folder.

    A running session can be looked at too. In the columns of events, -O_NOATIME is a flag
    that was cleared and O_NOATIME one that was left, RESULT is the descriptor or the error,
    and 2x says that the kernel was asked twice. REFUSED counts opens refused (EPERM, EACCES,
    EINVAL) although a flag was cleared, FAILED those that failed in any other way.

    \b
    Example:
      flagshim run -o boot.db -- qemu-system-x86_64 ...
      flagshim report boot.db
      flagshim report boot.db --view paths --limit 50
      flagshim report boot.db --view events --since 15m --format json
    """
    exact = format_ != "table"
    with (
        TraceReader(trace or latest_trace(state_directory())) as reader,
        ending_as_coreutils(),
        standard_output(exact) as out,
    ):
        selection = Selection(View(view), since, None if limit is None else min(limit, _INT64_MAX))
        match format_:
            case "table":
                table.write(reader, selection, out, _width())
            case "json":
                jsonfile.write(reader, selection, out)
            case "csv":
                csvfile.write(reader, selection, out)


def _width() -> int | None:
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else None
