"""flagshim report: what a trace says."""

import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TextIO

import click

from flagshim.cli.gates import announce, gate_options
from flagshim.cli.output import color_option, ending_as_coreutils, palette, standard_output
from flagshim.cli.reading import INT64_MAX, reading, since_option, trace_argument
from flagshim.errors import EXIT_GATE, FlagshimError
from flagshim.gates.judgement import Gate, Judgement
from flagshim.reports import csvfile, github, gitlab, html, jsonfile, junit, markdown, table
from flagshim.reports.view import Selection, View
from flagshim.trace.reader import TraceReader

_WITH_VIEWS = ("table", "json", "csv", "markdown")
_WITHOUT_VIEWS = ("html", "junit", "github", "gitlab")


@click.command()
@trace_argument
@click.option(
    "--view",
    type=click.Choice([str(view) for view in View]),
    help=f"For {', '.join(_WITH_VIEWS)}: sessions and what was opened most; each open; opens by "
    f"file; opens by program. [default: {View.SUMMARY}]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice([*_WITH_VIEWS, *_WITHOUT_VIEWS]),
    default="table",
    show_default=True,
    help="For people on a terminal; for programs, with every name exact; for spreadsheets; for "
    "issues and wikis. One page to look around in; for Jenkins and others; annotations, and the "
    "summary of a GitHub step; for GitLab's Code Quality.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the newest N sessions or opens, or the N most frequent paths or programs. "
    f"[default: {table.LIMIT} in table and markdown other than of events, {html.LIMIT} opens in "
    f"html, {junit.LIMIT} files in junit and gitlab, else all]",
)
@since_option("Only opens from then on, and sessions that went on until then")
@gate_options
@color_option
def report(
    trace: Path | None,
    view: str | None,
    format_: str,
    limit: int | None,
    since: int | None,
    gate: Gate | None,
    color: str,
) -> int:
    """Show what a trace says; without TRACE, the latest in the state folder.

    A running session can be looked at too. In the columns of events, -O_NOATIME is a flag
    that was cleared and O_NOATIME one that was left, RESULT is the descriptor or the error,
    and 2x says that the kernel was asked twice. REFUSED counts opens refused (EPERM, EACCES,
    EINVAL) although a flag was cleared, FAILED those that failed in any other way.

    Exit status: 122 if the gate (--fail-on, --baseline) failed; what it failed for, and what
    is different from the baseline, is said on stderr. 125: flagshim failed.

    \b
    Example:
      flagshim run -o boot.db -- qemu-system-x86_64 ...
      flagshim report boot.db
      flagshim report boot.db --view paths --limit 50
      flagshim report boot.db --view events --since 15m --format json
      flagshim report boot.db --format html > boot.html
      flagshim report boot.db --format junit --baseline opens.txt > junit.xml
    """
    if view and format_ in _WITHOUT_VIEWS:
        raise FlagshimError(f"--view with --format {format_}", "it always shows everything")
    if format_ == "html" and sys.stdout is not None and sys.stdout.isatty():
        raise FlagshimError("HTML on a terminal", "redirect it to a file: … > report.html")
    selection = Selection(
        View(view or View.SUMMARY), since, None if limit is None else min(limit, INT64_MAX)
    )
    with (
        reading(trace) as (reader, progress),
        ending_as_coreutils(),
        standard_output(exact=format_ != "table", first=progress.give_way) as out,
    ):
        judgement = gate.judge(reader, since) if gate else None
        if format_ == "table":
            table.write(reader, selection, out, _width(), palette(color))
        else:
            _write(format_, reader, selection, judgement, out)
    if judgement:
        announce(judgement, color)
    return EXIT_GATE if judgement and judgement.failed else 0


def _write(
    format_: str,
    reader: TraceReader,
    selection: Selection,
    judgement: Judgement | None,
    out: TextIO,
) -> None:
    match format_:
        case "json":
            jsonfile.write(reader, selection, judgement, out)
        case "csv":
            csvfile.write(reader, selection, out)
        case "markdown":
            markdown.write(reader, selection, judgement, out)
        case "html":
            html.write(reader, selection, judgement, out)
        case "junit":
            junit.write(reader, selection, judgement, out)
        case "gitlab":
            root = os.environ.get("CI_PROJECT_DIR") or os.getcwd()
            gitlab.write(reader, selection, judgement, out, root)
        case "github":
            with _step_summary() as summary:
                github.write(reader, selection, judgement, out, summary)


def _step_summary() -> AbstractContextManager[TextIO | None]:
    """Open what GitHub shows of a step, to append to it; nothing elsewhere."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return nullcontext()
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        hint = "unset GITHUB_STEP_SUMMARY for annotations only"
        raise FlagshimError(f"GITHUB_STEP_SUMMARY {path}: {error.strerror}", hint) from None


def _width() -> int | None:
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else None
