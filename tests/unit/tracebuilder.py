"""Makes traces by hand, so that a reader is tested against the schema and not a writer."""

import json
import os
import sqlite3
from pathlib import Path

from flagshim.trace import schema
from flagshim.trace.events import OpenEvent

SECOND = 10**9
START = 1_700_000_000 * SECOND
O_NOATIME = 0o1000000
O_CLOEXEC = 0o2000000

SESSION = {
    "started_ns": START,
    "ended_ns": START + 5 * SECOND,
    "flagshim": "0.1.0",
    "engine": "ptrace",
    "host": "builder",
    "kernel": "6.1.0",
    "machine": "x86_64",
    "uid": 1000,
    "cwd": "/home/u",
    "command": json.dumps(["qemu-system-x86_64", "-m", "2 G"]),
    "rules": json.dumps([{"name": "noatime", "clear": ["O_NOATIME"]}]),
    "exit_status": 0,
    "seen": 0,
    "lost": 0,
}

OPEN = OpenEvent(
    time_ns=START,
    tid=4243,
    pid=4242,
    program="qemu-system-x86_64",
    syscall="openat",
    abi="x86_64",
    path="hello",
    resolved="/nix/store/hello",
    access="r",
    flags_before=O_NOATIME | O_CLOEXEC,
    flags_after=O_CLOEXEC,
    decision="cleared",
    rule="noatime",
    reason="refused by the kernel",
    owner_uid=0,
    fsuid=1000,
    fd=9,
    errno=None,
    tries=2,
)

KEPT = {"flags_after": OPEN.flags_before, "decision": "kept", "reason": "allowed by the kernel"}
STILL_REFUSED = {"fd": None, "errno": "EPERM"}
FAILED = {**KEPT, "fd": None, "errno": "ENOENT", "reason": "failed for another reason"}


class Trace:
    """A trace under construction; each call commits."""

    def __init__(self, path: str | os.PathLike[str], journal: str = "WAL") -> None:
        self.path = Path(path)
        self.db = sqlite3.connect(os.fsencode(path), isolation_level=None)
        self.db.execute(f"PRAGMA journal_mode = {journal}")
        self.db.executescript(
            f"BEGIN; {schema.DDL} PRAGMA application_id = {schema.APPLICATION_ID};"
            f"PRAGMA user_version = {schema.VERSION}; COMMIT;"
        )

    def session(self, **columns: object) -> int:
        row = {**SESSION, **columns}
        marks = ", ".join("?" * len(row))
        query = f"INSERT INTO session ({', '.join(row)}) VALUES ({marks})"
        return self.db.execute(query, tuple(row.values())).lastrowid

    def event(self, session: int = 1, **columns: object) -> OpenEvent:
        event = OPEN._replace(**columns)
        self.events([event], session)
        return event

    def events(self, events, session: int = 1) -> None:
        self.db.execute("BEGIN")
        self.db.executemany(schema.INSERT_EVENT, ((session, *event) for event in events))
        self.db.execute("COMMIT")

    def blind_spot(self, kind: str, program: str | bytes, count: int, session: int = 1) -> None:
        self.db.execute(
            "INSERT INTO blind_spot VALUES (?, ?, ?, ?)", (session, kind, program, count)
        )

    def close(self) -> Path:
        self.db.close()
        return self.path


def small(path: str | os.PathLike[str]) -> Path:
    """A finished trace: one session, a cleared, a kept, a still refused and a failed open."""
    trace = Trace(path)
    trace.session(seen=5, lost=1)
    trace.event()
    trace.event(time_ns=START + 1, **KEPT)
    trace.event(time_ns=START + 2, resolved="/etc/frozen", **STILL_REFUSED)
    trace.event(time_ns=START + 3, program="bash", path="gone", resolved=None, **FAILED)
    return trace.close()
