"""A trace as one HTML page to look around in: no network, and only so many events.

The page is static (page/): what is different from trace to trace is a block of JSON, which no
name can end or leave. A Content-Security-Policy lets the browser run the page's own scripts only.
"""

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, TextIO

from flagshim import __version__
from flagshim.gates.baseline import literally, texts
from flagshim.gates.judgement import Judgement
from flagshim.reports import baselinefile, flags
from flagshim.reports.gate import verdict
from flagshim.reports.notes import SessionNotes
from flagshim.reports.pathtree import PathTree, effects
from flagshim.reports.text import command_line, exit_status, printable, shorten
from flagshim.reports.view import Selection
from flagshim.trace.events import Decision, OpenEvent
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import Name, Session, TracedEvent

LIMIT = 100_000
"""Events in the page if nobody says how many; those refused go before others, then the newest."""
SESSIONS = 101
PROGRAMS = 1009
"""Sessions and programs in the page: the newest, and those refused most."""
BINS = 360
"""Spans of time that the timeline has."""
LONGEST = 8192
"""Characters of a command."""

_SCRIPTS = ("vendor/uPlot.iife.min.js", "vendor/tabulator.min.js", "page.js")
_STYLES = ("vendor/uPlot.min.css", "vendor/tabulator_simple.min.css", "page.css")
_SOURCE_MAP = re.compile(r"/[/*]# sourceMappingURL=.*")
_Object = dict[str, Any]


def write(
    reader: TraceReader, selection: Selection, judgement: Judgement | None, out: TextIO
) -> None:
    """Write the page; but for the page's own text, what is written is ASCII.

    Raises:
        FlagshimError: the trace is damaged.
    """
    before, _, after = _frame().partition("{{data}}")
    out.write(before)
    separator = "{"
    for member, value in _members(reader, selection, judgement):
        out.write(f"{separator}{json.dumps(member)}:{_embedded(value)}\n")
        separator = ","
    out.write("}" + after)


def _embedded(value: object) -> str:
    """Return JSON that cannot be taken for the end of the element it is in, nor for a comment.

    https://html.spec.whatwg.org/multipage/scripting.html#restrictions-for-contents-of-script-elements
    """
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _frame() -> str:
    """Return the page with its styles and scripts in it, and {{data}}."""
    scripts = [_part(name) for name in _SCRIPTS]
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    parts = {
        "policy": " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests),
        "styles": "".join(f"<style>{_part(name)}</style>\n" for name in _STYLES),
        "scripts": "".join(f"<script>{script}</script>\n" for script in scripts),
        "data": "{{data}}",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def _part(name: str) -> str:
    text = files("flagshim.reports").joinpath("page", name).read_text("utf-8")
    return _SOURCE_MAP.sub("", text).strip()


def _members(
    reader: TraceReader, selection: Selection, judgement: Judgement | None
) -> Iterator[tuple[str, object]]:
    since = selection.since_ns
    notes = SessionNotes(reader)
    sessions = reader.sessions(since)
    yield (
        "about",
        {
            "trace": printable(os.fsdecode(reader.path)),
            "flagshim": __version__,
            "made_ms": time.time_ns() // 10**6,
            "since_ms": None if since is None else since / 10**6,
            "sessions": len(sessions),
            "missing": sum(map(notes.missing, sessions)),
            "dropped": sum(map(notes.dropped, sessions)),
        },
    )
    yield "gate", judgement and _gate(judgement)
    yield "sessions", [_session(session, notes) for session in sessions[: -SESSIONS - 1 : -1]]
    tree = PathTree()
    programs: dict[str, list[int]] = {}
    for opened in reader.opened(since):
        tree.add(opened)
        name = printable(opened.program)
        if name not in programs and len(programs) >= PROGRAMS:
            name = "… others"
        sums = programs.setdefault(name, [0] * 5)
        for at, count in enumerate(effects(opened)):
            sums[at] += count
    yield "paths", tree.rows()
    yield "programs", [[name, *sums] for name, sums in programs.items()]
    count, first_ns, last_ns = reader.count(since)
    yield "timeline", _timeline(reader, since, first_ns, last_ns)
    limit = min(selection.limit or LIMIT, LIMIT)
    yield "events", _Events(first_ns).taken(reader.events(since, limit, refused_first=True), count)


def _gate(judgement: Judgement) -> _Object:
    difference = judgement.difference
    return {
        "failed": judgement.failed,
        "verdict": verdict(judgement),
        "conditions": [[str(j.condition), j.count, j.failed] for j in judgement.judged],
        "baseline": difference and printable(difference.baseline),
        "new": difference
        and [
            [baselinefile.line(literally(texts(finding))), finding.opens]
            for finding in difference.new
        ],
        "new_count": difference and difference.new_count,
        "gone": difference and [baselinefile.line(entry) for entry in difference.gone],
        "gone_count": difference and difference.gone_count,
    }


def _session(session: Session, notes: SessionNotes) -> _Object:
    ended = session.ended_ns
    spots = notes.blind_spots(session)[:SESSIONS]
    return {
        "id": session.id,
        "command": shorten(command_line(session.command), LONGEST),
        "started_ms": session.started_ns / 10**6,
        "took_s": None if ended is None else (ended - session.started_ns) / 10**9,
        "exit": "" if ended is None else exit_status(session.exit_status),
        "host": printable(session.host),
        "kernel": printable(session.kernel),
        "engine": printable(session.engine),
        "flagshim": printable(session.flagshim),
        "uid": session.uid,
        "cwd": printable(session.cwd),
        "tally": notes.tally(session)[:5],
        "missing": notes.missing(session),
        "dropped": notes.dropped(session),
        "unseen": [f"{printable(s.kind)}: {printable(s.program)}, {s.count}x" for s in spots],
        "troubles": [printable(t.text) for t in notes.troubles(session)[:SESSIONS]],
    }


def _timeline(reader: TraceReader, since: int | None, first_ns: int, last_ns: int) -> _Object:
    width_ns = max((last_ns - first_ns) // BINS + 1, 1_000_000)
    spans = reader.timeline(since, first_ns, width_ns)
    return {"start_ms": first_ns / 10**6, "width_ms": width_ns / 10**6, "spans": spans}


class _Events:
    """Events column by column, each name once: a tenth of what they take as objects."""

    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self._names: dict[str, int] = {}
        self._known: dict[Name, int] = {}

    def taken(self, events: Iterator[TracedEvent], count: int) -> _Object:
        """Return the events as columns.

        Args:
            count: how many there are in the trace.
        """
        rows = [self._row(traced) for traced in events]
        columns = list(zip(*rows, strict=True))
        keys = ("time_us", "session", "pid", "tid", "program", "call", "flags", "result", "effect",
                "tries", "path", "asked", "rule", "reason", "owner", "fsuid")  # fmt: skip
        return {
            "count": count,
            "shown": len(rows),
            "start_ms": self._start_ns / 10**6,
            "names": list(self._names),
            "columns": dict(zip(keys, columns or [()] * len(keys), strict=True)),
        }

    def _row(self, traced: TracedEvent) -> tuple[int | None, ...]:
        event = traced.event
        name = self._name
        return (
            (event.time_ns - self._start_ns) // 1000,
            traced.session_id,
            event.pid,
            event.tid,
            name(event.program),
            name(event.syscall),
            name(flags.change(event.flags_before, event.flags_after, traced.machine)),
            name(event.errno or ("?" if event.fd is None else str(event.fd))),
            name(_effect(event)),
            event.tries,
            name(event.path if event.resolved is None else event.resolved),
            name(event.path),
            name(event.rule or "-"),
            name(event.reason),
            event.owner_uid,
            event.fsuid,
        )

    def _name(self, name: Name) -> int:
        at = self._known.get(name)
        if at is None:
            at = self._names.setdefault(printable(name), len(self._names))
            self._known[name] = at
        return at


def _effect(event: OpenEvent) -> str:
    cleared = event.decision == Decision.CLEARED
    if event.errno is None:
        return "rewritten" if cleared else "kept"
    refused = event.errno in ("EPERM", "EACCES") or (cleared and event.errno == "EINVAL")
    return "refused" if refused else "failed"
