"""Records as OpenTelemetry has them: log records, with their session as resource.

Names: https://opentelemetry.io/docs/specs/semconv/registry/attributes/. Needs the extra "otlp".
"""

import time
from functools import lru_cache
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from flagshim import __version__
from flagshim.exports.records import Kind, Record, Source, plain
from flagshim.trace.events import Decision

_SCOPE = InstrumentationScope("flagshim", __version__)
_ARCHITECTURES = {"x86_64": "amd64", "i686": "x86", "aarch64": "arm64"}
_SEMANTIC = {
    "program": "process.executable.name",
    "pid": "process.pid",
    "tid": "thread.id",
    "errno": "error.type",
}
"""OpenTelemetry's names for what we have; all else is flagshim.…."""


class LogRecords:
    """Makes log records; those of one session share a resource."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}
        self._resource = lru_cache(1009)(self._make_resource)

    def make(self, record: Record) -> ReadableLogRecord:
        """Return a record as the SDK's exporters take it."""
        uid = record.source.uid
        self._sources.setdefault(uid, record.source)
        severity = SeverityNumber.WARN if _is_bad(record) else SeverityNumber.INFO
        log_record = LogRecord(
            timestamp=max(record.time_ns, 0),
            observed_timestamp=time.time_ns(),
            severity_number=severity,
            severity_text=severity.name,
            body=_body(record),
            attributes=_attributes(record),
            event_name=f"flagshim.{record.kind}",
        )
        return ReadableLogRecord(log_record, self._resource(uid), _SCOPE)

    def _make_resource(self, uid: str) -> Resource:
        return Resource.create(_resource_attributes(self._sources[uid]))


def _resource_attributes(source: Source) -> dict[str, Any]:
    session = source.session
    return {
        "service.name": "flagshim",
        "service.version": session.flagshim,
        "service.instance.id": source.uid,
        "host.name": session.host,
        "host.arch": _ARCHITECTURES.get(session.machine, session.machine),
        "os.type": "linux",
        "os.version": session.kernel,
        "process.command_args": [plain(word) for word in session.command],
        "process.working_directory": plain(session.cwd),
        "process.real_user.id": session.uid,
        "flagshim.engine": session.engine,
        **source.labels,
    }


def _attributes(record: Record) -> dict[str, Any]:
    """Return what a record says, without what it does not know."""
    found: dict[str, Any] = {}
    for name, value in record.members.items():
        if value is None or name == "time_ns":
            continue
        known = _SEMANTIC.get(name, f"flagshim.{name}")
        found[known] = plain(value) if isinstance(value, str | bytes) else value
        if isinstance(value, bytes):
            found[f"{known}.bytes"] = value
    file = record.members.get("resolved") or record.members.get("path")
    if file:
        found["file.path"] = plain(file)
    if record.kind is Kind.SESSION and record.source.session.exit_status is not None:
        found["process.exit.code"] = record.source.session.exit_status
    return found


def _is_bad(record: Record) -> bool:
    """Tell whether somebody may want to be told of it."""
    members = record.members
    match record.kind:
        case Kind.OPEN:
            return members["decision"] == Decision.CLEARED and members["errno"] is not None
        case Kind.SESSION:
            return bool(members["lost"])
        case Kind.DROPPED:
            return bool(members["still_refused"])
    return True


def _body(record: Record) -> str:
    """Return a line for people."""
    members = record.members
    match record.kind:
        case Kind.OPEN:
            flags = "|".join(members["flags_cleared"]) or "nothing"
            file = plain(members["resolved"] or members["path"] or "(unknown)")
            return f"{members['syscall']}: {flags} cleared, {members['reason']}: {file}"
        case Kind.SESSION:
            return f"{members['seen']} opens seen, {members['lost']} not written down"
        case Kind.DROPPED:
            file = plain(members["resolved"] or "(unknown)")
            return f"{members['count']} opens, {members['cleared']} of them cleared: {file}"
        case Kind.BLIND_SPOT:
            return f"{members['blind_spot']}: may have opened files unseen"
    return str(members["text"])
