"""A trace as CSV (RFC 4180) with a line of headings; docs/trace-format.md describes it."""

import csv
import os
import shlex
from collections.abc import Iterable, Iterator
from typing import TextIO

from flagshim.reports import flags
from flagshim.reports.notes import SessionNotes
from flagshim.reports.text import utc
from flagshim.reports.view import Selection, View
from flagshim.trace.events import OpenEvent
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import NamedTally, Session, Tally, TracedEvent

_Cell = str | int | None

_SESSION = (
    "session", "started", "ended", "flagshim", "engine", "host", "kernel", "machine", "uid", "cwd",
    "command", "exit_status", "seen", "lost", "cleared", "still_refused", "kept", "failed",
    "dropped", "blind_spots", "troubles",
)  # fmt: skip
_EVENT = (
    "session", "time", *OpenEvent._fields, "flag_names_before", "flag_names_after", "flags_cleared",
)  # fmt: skip
_TALLY = (*Tally._fields, "first", "last")


def write(reader: TraceReader, selection: Selection, out: TextIO) -> None:
    """Write a view of a trace.

    Args:
        out: must leave line ends alone (newline="") and be able to take all of Unicode.

    Raises:
        FlagshimError: the trace is damaged.
    """
    since, limit = selection.since_ns, selection.limit
    headings: tuple[str, ...]
    rows: Iterable[tuple[_Cell, ...]]
    match selection.view:
        case View.SUMMARY:
            headings, rows = _SESSION, _sessions(reader, since, limit)
        case View.EVENTS:
            headings, rows = _EVENT, map(_event, reader.events(since, limit))
        case View.PATHS:
            headings, rows = ("path", *_TALLY), map(_tally, reader.by_path(since, limit))
        case View.PROGRAMS:
            headings, rows = ("program", *_TALLY), map(_tally, reader.by_program(since, limit))
    writer = csv.writer(out)
    writer.writerow(headings)
    writer.writerows(rows)


def name(value: str | bytes | None) -> str | None:
    r"""Return a name as CSV holds it: as it is, or with \xNN for each byte not UTF-8."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _sessions(
    reader: TraceReader, since: int | None, limit: int | None
) -> Iterator[tuple[_Cell, ...]]:
    notes = SessionNotes(reader)
    for session in reader.sessions(since, limit):
        tally = notes.tally(session)
        sums = (tally.cleared, tally.still_refused, tally.kept, tally.failed)
        unseen = sum(spot.count for spot in notes.blind_spots(session))
        troubles = len(notes.troubles(session))
        yield (*_session(session), *sums, notes.dropped(session), unseen, troubles)


def _session(session: Session) -> tuple[_Cell, ...]:
    command = shlex.join(map(os.fsdecode, session.command))
    return (
        session.id, utc(session.started_ns),
        None if session.ended_ns is None else utc(session.ended_ns),
        session.flagshim, session.engine, session.host, session.kernel, session.machine,
        session.uid, name(session.cwd), name(command.encode(errors="surrogateescape")),
        session.exit_status, session.seen, session.lost,
    )  # fmt: skip


def _event(traced: TracedEvent) -> tuple[_Cell, ...]:
    event, machine = traced.event, traced.machine
    return (
        traced.session_id,
        utc(event.time_ns),
        *(name(value) if isinstance(value, bytes) else value for value in event),
        flags.names(event.flags_before, machine),
        flags.names(event.flags_after, machine),
        "|".join(flags.cleared(event.flags_before, event.flags_after, machine)),
    )


def _tally(named: NamedTally) -> tuple[_Cell, ...]:
    tally = named.tally
    return (name(named.name), *tally, utc(tally.first_ns), utc(tally.last_ns))
