"""A trace for people: aligned columns, every name made printable."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TextIO

from tabulate import tabulate

from flagshim.reports import flags
from flagshim.reports.notes import SessionNotes
from flagshim.reports.palette import PLAIN, Palette
from flagshim.reports.text import (
    command_line,
    duration,
    exit_status,
    local_clock,
    local_date,
    local_second,
    printable,
    shorten,
)
from flagshim.reports.view import TOP, Selection, View
from flagshim.trace.events import OpenEvent
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import NamedTally, Session, TracedEvent

LIMIT = 20
"""Sessions, paths and programs shown if nobody says how many."""
_NARROWEST = 12
"""Columns a name gets on a terminal however narrow that is."""


_CHANGE, _RESULT = 10, 6
"""Columns of what became of the flags and of the call."""


class _Page(NamedTuple):
    """What the table is for."""

    width: int | None
    paint: Palette


def write(
    reader: TraceReader,
    selection: Selection,
    out: TextIO,
    width: int | None,
    paint: Palette = PLAIN,
) -> None:
    """Write a view of a trace.

    Args:
        width: columns of the terminal; None: `out` is none, nothing is shortened.

    Raises:
        FlagshimError: the trace is damaged.
    """
    page = _Page(width, paint)
    match selection.view:
        case View.SUMMARY:
            _summary(reader, selection, out, page)
        case View.EVENTS:
            _events(reader.events(selection.since_ns, selection.limit), out, page)
        case View.PATHS:
            tallies = reader.by_path(selection.since_ns)
            _tallies("path", tallies, selection.limit or LIMIT, out, page)
        case View.PROGRAMS:
            tallies = reader.by_program(selection.since_ns)
            _tallies("program", tallies, selection.limit or LIMIT, out, page)


def _summary(reader: TraceReader, selection: Selection, out: TextIO, page: _Page) -> None:
    sessions = reader.sessions(selection.since_ns)
    limit = selection.limit or LIMIT
    if not sessions:
        out.write("No session.\n")
    elif len(sessions) > limit:
        out.write(f"{len(sessions) - limit} earlier sessions; --limit N shows more.\n\n")
    notes = SessionNotes(reader)
    for session in sessions[-limit:]:
        out.write(_session(session, notes, page) + "\n")
    since = selection.since_ns
    span = "" if since is None else f" since {local_second(since)}"
    for title, key, top in (
        ("Paths opened most", "path", reader.by_path(since, TOP)),
        ("Programs that opened most", "program", reader.by_program(since, TOP)),
    ):
        rows = list(top)
        if rows:
            out.write(f"\n{page.paint.heading(title + span)}\n{_tally_table(rows, key, page)}\n")


def _session(session: Session, notes: SessionNotes, page: _Page) -> str:
    title = f"Session {session.id}, {local_second(session.started_ns)}"
    lines = [page.paint.heading(title)]
    label = 10
    room = None if page.width is None else max(page.width - label, _NARROWEST)
    for title, text in _session_lines(session, notes):
        lines.append(f"  {title:<{label - 2}}{shorten(text, room)}")
    return "\n".join(lines)


def _session_lines(session: Session, notes: SessionNotes) -> Iterator[tuple[str, str]]:
    tally = notes.tally(session)
    yield "command", command_line(session.command)
    if session.ended_ns is None:
        yield "exit", "still running, or its supervisor was killed"
    else:
        took = duration(session.ended_ns - session.started_ns)
        yield "exit", f"{exit_status(session.exit_status)}, after {took}"
    # A session that did not end may not have said yet how many it looked at.
    seen = max(session.seen, tally.opens + session.lost)
    yield "opens", f"{seen} seen: {tally.cleared} cleared, {tally.kept} kept, {session.lost} lost"
    yield "", f"{tally.still_refused} still refused after clearing, {tally.failed} failed otherwise"
    if missing := seen - session.lost - tally.opens:
        yield "", f"{missing} not in the trace{' yet' if session.ended_ns is None else ''}"
    if dropped := notes.dropped(session):
        yield "", f"{dropped} of them only as counts: more were not to be kept"
    spots = [
        f"{printable(spot.kind)}: {printable(spot.program)}, {spot.count}x"
        for spot in notes.blind_spots(session)
    ]
    troubles = [f"{local_second(t.time_ns)} {printable(t.text)}" for t in notes.troubles(session)]
    for title, found in (("unseen", spots), ("trouble", troubles)):
        for number, text in enumerate(found[:TOP]):
            yield "" if number else title, text
        if len(found) > TOP:
            yield "", f"and {len(found) - TOP} more; --format json has them all"


def _events(events: Iterator[TracedEvent], out: TextIO, page: _Page) -> None:
    # Not by tabulate, which wants all rows before it shows the first.
    program_width = 18 if page.width is None or page.width >= 100 else 10
    fixed = _event_line([""] * 8, program_width)
    room: tuple[int | None, ...] = (None,) * 5
    if page.width is not None:
        room = (program_width, 7, _CHANGE, _RESULT, max(page.width - len(fixed), _NARROWEST))
    header = ("TIME", "PID", "PROGRAM", "SYSCALL", "FLAGS", "RESULT", "", "PATH")
    date = None
    for _, machine, event in events:
        if date is None:
            out.write(page.paint.heading(_event_line(header, program_width)) + "\n")
        if date != (date := local_date(event.time_ns)):
            out.write(f"{date}\n")
        program, syscall, change, result, path = map(shorten, _event_texts(event, machine), room)
        tries = f"{event.tries}x" if event.tries > 1 else ""
        clock, pid = local_clock(event.time_ns), str(event.pid)
        if event.flags_before != event.flags_after:
            change = page.paint.good(f"{change:<{_CHANGE}}")
        if event.errno is not None:
            result = page.paint.bad(f"{result:<{_RESULT}}")
        cells = (clock, pid, program, syscall, change, result, tries, path)
        out.write(_event_line(cells, program_width) + "\n")
    if date is None:
        out.write("No open.\n")


def _event_line(cells: Sequence[str], program_width: int) -> str:
    time, pid, program, syscall, change, result, tries, path = cells
    return (
        f"{time:<12} {pid:>7} {program:<{program_width}} {syscall:<7} {change:<{_CHANGE}} "
        f"{result:<{_RESULT}} {tries:<2} {path}"
    )


def _event_texts(event: OpenEvent, machine: str) -> tuple[str, str, str, str, str]:
    return (
        printable(event.program),
        printable(event.syscall),
        flags.change(event.flags_before, event.flags_after, machine),
        _result(event),
        printable(event.path if event.resolved is None else event.resolved),
    )


def _result(event: OpenEvent) -> str:
    if event.errno is not None:
        return printable(event.errno)
    return "?" if event.fd is None else str(event.fd)


def _tallies(
    title: str, tallies: Iterator[NamedTally], limit: int, out: TextIO, page: _Page
) -> None:
    rows = list(islice(tallies, limit))
    if not rows:
        out.write("No open.\n")
        return
    out.write(_tally_table(rows, title, page) + "\n")
    if more := sum(1 for _ in tallies):
        out.write(f"{more} more; --limit N shows more.\n")


def _tally_table(rows: Sequence[NamedTally], title: str, page: _Page) -> str:
    numbers = [["OPENS", "CLEARED", "REFUSED", "KEPT", "FAILED"]]
    for _, tally in rows:
        counts = (tally.opens, tally.cleared, tally.still_refused, tally.kept, tally.failed)
        numbers.append([str(count) for count in counts])
    gap = 2
    taken = sum(max(map(len, column)) + gap for column in zip(*numbers, strict=True))
    room = None if page.width is None else max(page.width - taken, _NARROWEST)
    names = [title.upper(), *(shorten(printable(row.name), room) for row in rows)]
    # Headings as a row: tabulate would else make columns wider than need be, and take
    # files called 007 and 1e5 for numbers.
    paint = page.paint
    dressed = [[paint.heading(cell) for cell in (*numbers[0], names[0])]]
    for (opens, cleared, refused, kept, failed), name in zip(numbers[1:], names[1:], strict=True):
        good = cleared if cleared == "0" else paint.good(cleared)
        bad = refused if refused == "0" else paint.bad(refused)
        dressed.append([opens, good, bad, kept, failed, name])
    return tabulate(
        dressed,
        tablefmt="plain",
        colalign=("right",) * len(numbers[0]) + ("left",),
    )
