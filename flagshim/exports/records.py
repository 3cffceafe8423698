"""A trace as one stream of records that each say of which session, host and CI job they are."""

import json
import os
import uuid
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from flagshim.reports import flags
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import Session, Tally

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562, of URLs
_NAME = (str, bytes)
_DROPPED: dict[str, tuple[type, ...]] = {
    "session_id": (int,),
    "program": _NAME,
    "rule": (str,),
    "path": _NAME,
    **dict.fromkeys(Tally._fields, (int,)),
}


class Kind(StrEnum):
    """What a record is about."""

    SESSION = "session"
    OPEN = "open"
    DROPPED = "dropped"
    """Opens of one file by one program under one rule that are only counted (`--keep`)."""
    BLIND_SPOT = "blind_spot"
    TROUBLE = "trouble"


class Source(NamedTuple):
    """Where a record comes from."""

    uid: str
    """The same wherever the session is copied to: a UUID of its start, host, user and command."""
    session: Session
    labels: dict[str, str]


class Record(NamedTuple):
    """One row, or one log record."""

    kind: Kind
    source: Source
    time_ns: int
    members: dict[str, Any]
    """By the names that docs/trace-format.md has for them."""


def records(reader: TraceReader) -> Iterator[Record]:
    """Everything a trace says: the sessions, what is known of each, then opens in order of time.

    Raises:
        FlagshimError: the trace is damaged; what came before is right.
    """
    labels = reader.labels()
    sources = {
        session.id: Source(_uid(session), session, labels.get(session.id, {}))
        for session in reader.sessions()
    }
    spots, troubles = reader.blind_spots(), reader.troubles()
    for source in sources.values():
        session = source.session
        started = session.started_ns
        counts = {"seen": session.seen, "lost": session.lost}
        yield Record(Kind.SESSION, source, started, {"ended_ns": session.ended_ns, **counts})
        for spot in spots.get(session.id, ()):
            members: dict[str, Any] = {
                "blind_spot": spot.kind,
                "program": spot.program,
                "count": spot.count,
            }
            yield Record(Kind.BLIND_SPOT, source, started, members)
        for trouble in troubles.get(session.id, ()):
            yield Record(Kind.TROUBLE, source, trouble.time_ns, {"text": trouble.text})
    for session_id, program, rule, path, *counted in reader.rows("dropped", _DROPPED):
        tally = Tally(*counted)
        counts = {"count": tally.opens, **tally._asdict()}
        del counts["opens"]
        members = {"program": program, "rule": rule or None, "resolved": path or None, **counts}
        if session_id in sources:
            yield Record(Kind.DROPPED, sources[session_id], tally.first_ns, members)
    for traced in reader.events():
        event = traced.event
        names = flags.cleared(event.flags_before, event.flags_after, traced.machine)
        members = {**event._asdict(), "flags_cleared": list(names)}
        yield Record(Kind.OPEN, sources[traced.session_id], event.time_ns, members)


def plain(name: str | bytes) -> str:
    r"""Return a name as text: exact where it is UTF-8, with \xNN for each byte that is not."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _uid(session: Session) -> str:
    command = [os.fsdecode(word) for word in session.command]
    key = json.dumps([session.started_ns, session.host, session.uid, command])
    return str(uuid.uuid5(_NAMESPACE, key))
