"""A trace in GitHub Flavored Markdown, for step summaries, issues and merge requests."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TextIO

from tabulate import tabulate

from flagshim.gates.judgement import Difference, Judgement
from flagshim.reports import flags, gate
from flagshim.reports.notes import SessionNotes
from flagshim.reports.text import (
    command_line,
    duration,
    exit_status,
    printable,
    shorten,
    utc,
)
from flagshim.reports.view import TOP, Selection, View
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import Name, NamedTally, Session, TracedEvent

LIMIT = 20
"""Sessions, paths and programs shown if nobody says how many."""
LONGEST = 200
"""Characters of a name or a command: a step summary may have a megabyte."""


def write(
    reader: TraceReader, selection: Selection, judgement: Judgement | None, out: TextIO
) -> None:
    """Write a view of a trace.

    Raises:
        FlagshimError: the trace is damaged.
    """
    since, limit = selection.since_ns, selection.limit or LIMIT
    if judgement:
        out.write(_gate(judgement))
    match selection.view:
        case View.SUMMARY:
            _summary(reader, since, limit, out)
        case View.EVENTS:
            headings = ("Time (UTC)", "PID", "Program", "Call", "Flags", "Result", "Path")
            rows = map(_event, reader.events(since, selection.limit))
            out.write(f"### Opens\n\n{_table(headings, rows)}\n")
        case View.PATHS:
            out.write(_tallies("Paths opened most", "Path", reader.by_path(since), limit))
        case View.PROGRAMS:
            tallies = reader.by_program(since)
            out.write(_tallies("Programs that opened most", "Program", tallies, limit))


def code(name: Name) -> str:
    """Return a name as a code span that is safe in a table, too."""
    return _code(printable(name))


def _code(text: str) -> str:
    """Return what is printable as a code span.

    Nothing is obeyed in there but the backticks that end it, and, in a table, the bar.
    """
    if not text:
        return "(empty)"
    text = shorten(text, LONGEST)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return tabulate(rows, headings, tablefmt="github", disable_numparse=True)


def _summary(reader: TraceReader, since: int | None, limit: int, out: TextIO) -> None:
    sessions = reader.sessions(since)
    notes = SessionNotes(reader)
    headings = (
        "Session", "Command", "Exit", "Took", "Opens", "Cleared", "Still refused", "Kept", "Failed",
        "Not in the trace", "Unseen",
    )  # fmt: skip
    rows = [_session(session, notes) for session in sessions[-limit:]]
    more = f"\n\n{len(sessions) - limit} earlier sessions" if len(sessions) > limit else ""
    out.write(f"### flagshim\n\n{_table(headings, rows) if rows else 'No session.'}{more}\n")
    out.write("\n" + _tallies("Paths opened most", "Path", reader.by_path(since), TOP))
    out.write(
        "\n" + _tallies("Programs that opened most", "Program", reader.by_program(since), TOP)
    )


def _session(session: Session, notes: SessionNotes) -> Sequence[str]:
    tally = notes.tally(session)
    running = session.ended_ns is None
    counts = (tally.opens, tally.cleared, tally.still_refused, tally.kept, tally.failed)
    return (
        str(session.id),
        _code(command_line(session.command)),
        "-" if running else exit_status(session.exit_status),
        "-" if session.ended_ns is None else duration(session.ended_ns - session.started_ns),
        *map(str, counts),
        str(notes.missing(session)),
        str(sum(spot.count for spot in notes.blind_spots(session))),
    )


def _tallies(title: str, key: str, tallies: Iterator[NamedTally], limit: int) -> str:
    rows = [
        (
            *map(str, (t.opens, t.cleared, t.still_refused, t.kept, t.failed)),
            code(name),
        )
        for name, t in islice(tallies, limit)
    ]
    if not rows:
        return f"### {title}\n\nNo open.\n"
    headings = ("Opens", "Cleared", "Still refused", "Kept", "Failed", key)
    more = sum(1 for _ in tallies)
    note = f"\n{more} more\n" if more else ""
    return f"### {title}\n\n{_table(headings, rows)}\n{note}"


def _event(traced: TracedEvent) -> Sequence[str]:
    event = traced.event
    result = event.errno or ("?" if event.fd is None else str(event.fd))
    return (
        utc(event.time_ns),
        str(event.pid),
        code(event.program),
        code(event.syscall),
        flags.change(event.flags_before, event.flags_after, traced.machine),
        _code(printable(result)),
        code(event.path if event.resolved is None else event.resolved),
    )


def _gate(judgement: Judgement) -> str:
    rows = [
        ("failed" if judged.failed else "passed", _code(str(judged.condition)), str(judged.count))
        for judged in judgement.judged
    ]
    sign = "❌ failed" if judgement.failed else "✅ passed"
    text = f"### Gate: {sign}\n\n{_table(('Result', 'Fails on', 'Count'), rows)}\n\n"
    if judgement.lost:
        text += f"{judgement.lost} opens are not in the trace.\n\n"
    return text + (_difference(judgement.difference) if judgement.difference else "")


def _difference(difference: Difference) -> str:
    name = _code(printable(difference.baseline))
    if not difference.new and not difference.gone:
        return f"Nothing is different from {name}.\n\n"
    # An indented block, unlike a fenced one, nothing in it can end: each line is one.
    lines = "\n".join(
        f"    {shorten(line.strip(), LONGEST)}" for line in gate.difference_lines(difference)
    )
    return f"Different from {name}:\n\n{lines}\n\n"
