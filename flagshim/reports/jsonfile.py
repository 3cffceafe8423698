"""A trace as one JSON document, written piece by piece; docs/trace-format.md describes it."""

import base64
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from flagshim.gates.judgement import Difference, Judgement
from flagshim.reports import flags
from flagshim.reports.notes import SessionNotes
from flagshim.reports.text import utc
from flagshim.reports.view import TOP, Selection, View
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import NamedTally, Session, TracedEvent

VERSION = 1
"""Raised when a member changes its meaning or goes; new members may come at any time."""

_Object = dict[str, Any]


def write(
    reader: TraceReader, selection: Selection, judgement: Judgement | None, out: TextIO
) -> None:
    """Write a view of a trace; what is written is ASCII.

    Args:
        judgement: what became of the gate; None: there was none.

    Raises:
        FlagshimError: the trace is damaged; what is written by then is no complete document.
    """
    head: _Object = {
        "version": VERSION,
        "view": str(selection.view),
        "trace": name(_bytes(reader.path)),
    }
    if judgement:
        head["gate"] = _gate(judgement)
    out.write(json.dumps(head)[:-1])
    for member, items in _members(reader, selection):
        out.write(f', "{member}": [')
        separator = "\n"
        for item in items:
            out.write(separator + json.dumps(item))
            separator = ",\n"
        out.write("\n]")
    out.write("}\n")


def name(value: str | bytes | None) -> str | _Object | None:
    """Return a name as JSON holds it: what is not UTF-8 as {"bytes": base64}."""
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return value


def _bytes(path: str) -> str | bytes:
    raw = os.fsencode(path)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _members(reader: TraceReader, selection: Selection) -> Iterator[tuple[str, Iterable[_Object]]]:
    since, limit = selection.since_ns, selection.limit
    match selection.view:
        case View.SUMMARY:
            yield "sessions", _sessions(reader, since, limit)
            yield "paths", _tallies("path", reader.by_path(since, TOP))
            yield "programs", _tallies("program", reader.by_program(since, TOP))
        case View.EVENTS:
            yield "events", map(_event, reader.events(since, limit))
        case View.PATHS:
            yield "paths", _tallies("path", reader.by_path(since, limit))
        case View.PROGRAMS:
            yield "programs", _tallies("program", reader.by_program(since, limit))


def _sessions(reader: TraceReader, since: int | None, limit: int | None) -> Iterator[_Object]:
    notes = SessionNotes(reader)
    for session in reader.sessions(since, limit):
        tally = notes.tally(session)
        yield {
            **_session(session),
            "cleared": tally.cleared,
            "still_refused": tally.still_refused,
            "kept": tally.kept,
            "failed": tally.failed,
            "dropped": notes.dropped(session),
            "blind_spots": [
                {"kind": spot.kind, "program": name(spot.program), "count": spot.count}
                for spot in notes.blind_spots(session)
            ],
            "troubles": [
                {"time": utc(trouble.time_ns), "time_ns": trouble.time_ns, "text": trouble.text}
                for trouble in notes.troubles(session)
            ],
        }


def _session(session: Session) -> _Object:
    return {
        "session": session.id,
        "started": utc(session.started_ns),
        "started_ns": session.started_ns,
        "ended": None if session.ended_ns is None else utc(session.ended_ns),
        "ended_ns": session.ended_ns,
        "flagshim": session.flagshim,
        "engine": session.engine,
        "host": session.host,
        "kernel": session.kernel,
        "machine": session.machine,
        "uid": session.uid,
        "cwd": name(session.cwd),
        "command": [name(argument) for argument in session.command],
        "rules": session.rules,
        "exit_status": session.exit_status,
        "seen": session.seen,
        "lost": session.lost,
    }


def _event(traced: TracedEvent) -> _Object:
    event, machine = traced.event, traced.machine
    return {
        "session": traced.session_id,
        "time": utc(event.time_ns),
        **event._asdict(),
        "program": name(event.program),
        "path": name(event.path),
        "resolved": name(event.resolved),
        "flag_names_before": flags.names(event.flags_before, machine),
        "flag_names_after": flags.names(event.flags_after, machine),
        "flags_cleared": flags.cleared(event.flags_before, event.flags_after, machine),
    }


def _tallies(key: str, tallies: Iterable[NamedTally]) -> Iterator[_Object]:
    for named in tallies:
        tally = named.tally
        yield {
            key: name(named.name),
            **tally._asdict(),
            "first": utc(tally.first_ns),
            "last": utc(tally.last_ns),
        }


def _gate(judgement: Judgement) -> _Object:
    return {
        "failed": judgement.failed,
        "conditions": [
            {
                "metric": str(judged.condition.metric),
                "operator": judged.condition.operator,
                "number": judged.condition.number,
                "count": judged.count,
                "failed": judged.failed,
            }
            for judged in judgement.judged
        ],
        "difference": judgement.difference and _difference(judgement.difference),
    }


def _difference(difference: Difference) -> _Object:
    return {
        "baseline": name(_bytes(difference.baseline)),
        "new_count": difference.new_count,
        "new": [
            {
                "effect": str(finding.effect),
                "rule": finding.rule,
                "program": name(finding.program),
                "path": name(finding.path),
                "opens": finding.opens,
            }
            for finding in difference.new
        ],
        "gone_count": difference.gone_count,
        "gone": [
            {
                "effect": str(entry.effect),
                "rule": name(_bytes(entry.rule)),
                "program": name(_bytes(entry.program)),
                "path": name(_bytes(entry.path)),
            }
            for entry in difference.gone
        ],
    }
