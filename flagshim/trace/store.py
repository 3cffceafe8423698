"""A trace file as its writer sees it: made, recognised, added to."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from flagshim.errors import FlagshimError
from flagshim.trace import schema

_BUSY_SECONDS = 2.0

BlindSpot = tuple[str, str | bytes, int]
"""(kind, program, count so far)."""


class TraceFile:
    """An open trace. Methods raise sqlite3.Error; `begin_session` explains it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(os.fsencode(path), isolation_level=None, timeout=_BUSY_SECONDS)
        # An event is on its way to the disk when it is written; waiting for it to arrive
        # would save it from a power cut only.
        self._db.execute("PRAGMA synchronous = OFF")

    def set_up(self) -> None:
        """Make an empty file a trace; check one that is not.

        Raises:
            FlagshimError: it is something else, or of another version of flagshim.
        """
        hint = "choose another file with -o"
        db = self._db
        db.execute("BEGIN IMMEDIATE")  # two may be about to make it
        try:
            application_id = self._pragma("application_id")
            version = self._pragma("user_version")
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables and not application_id:
                for statement in schema.DDL.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {schema.VERSION}")
            elif application_id != schema.APPLICATION_ID:
                raise FlagshimError(f"{self.path}: exists, and is not a flagshim trace", hint)
            elif version != schema.VERSION:
                what = "a newer" if version > schema.VERSION else "an older"
                cause = f"a trace of {what} flagshim (schema {version})"
                raise FlagshimError(f"{self.path}: {cause}", hint)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def let_others_read(self) -> None:
        """Keep readers from waiting for the writer, and it for them, until `leave_one_file`.

        A write-ahead log does that (https://sqlite.org/wal.html). Where the filesystem has no
        shared memory, SQLite stays with its rollback journal.
        """
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA journal_mode = WAL")

    def leave_one_file(self) -> None:
        """Fold the log into the trace, if nobody else is at it."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout = 0")
            self._db.execute("PRAGMA journal_mode = DELETE")

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def add_session(self, session: Mapping[str, object]) -> int:
        """Insert a row of the table `session`; return its id."""
        columns = ", ".join(session)
        marks = ", ".join("?" * len(session))
        cursor = self._db.execute(
            f"INSERT INTO session ({columns}) VALUES ({marks})", tuple(session.values())
        )
        return int(cursor.lastrowid or 0)

    def remove_session(self, session: "Session") -> None:
        """Take a session back that never began, and the file if it was made for it."""
        db = self._db
        db.execute("BEGIN EXCLUSIVE")
        db.execute("DELETE FROM session WHERE id = ?", (session.id,))
        if session.made_file and not db.execute("SELECT count(*) FROM session").fetchone()[0]:
            self.path.unlink(missing_ok=True)
        db.execute("COMMIT")

    def count_events(self, session_id: int) -> int:
        """Return how many events of a session are stored."""
        query = "SELECT count(*) FROM event WHERE session_id = ?"
        return int(self._db.execute(query, (session_id,)).fetchone()[0])

    def append(
        self,
        session_id: int,
        events: Iterable[tuple[object, ...]],
        seen: int,
        lost: int,
        blind_spots: Iterable[BlindSpot],
    ) -> None:
        """Write events and the session's counts so far, all or nothing."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(schema.INSERT_EVENT, ((session_id, *event) for event in events))
            db.execute(
                "UPDATE session SET seen = ?, lost = ? WHERE id = ?", (seen, lost, session_id)
            )
            db.executemany(
                "INSERT OR REPLACE INTO blind_spot VALUES (?, ?, ?, ?)",
                ((session_id, *spot) for spot in blind_spots),
            )
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def end_session(self, session_id: int, exit_status: int | None) -> None:
        """Note that a session is over."""
        self._db.execute(
            "UPDATE session SET ended_ns = ?, exit_status = ? WHERE id = ?",
            (time.time_ns(), exit_status, session_id),
        )

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


class Session(NamedTuple):
    """A session of a trace, to be written to."""

    trace: Path
    """Absolute."""
    id: int
    made_file: bool
    """Whether the trace was made for it."""


def begin_session(path: Path, row: Mapping[str, object]) -> Session:
    """Open an existing trace, or make a new one, and add a session to it.

    Args:
        path: may be relative.
        row: columns of the table `session`.

    Raises:
        FlagshimError: the file is something else, or cannot be written.
    """
    hint = "choose another file with -o"
    made = False
    try:
        path = Path(os.path.abspath(path))  # a name that SQLite takes for nothing but a path
        if os.path.realpath(path).startswith(("/proc/", "/dev/")):
            raise FlagshimError(f"{path}: not a place for a trace", hint)
        made = _make(path)
        if not path.is_file():
            raise FlagshimError(f"{path}: not a regular file", hint)
        if path.stat().st_size and not _looks_like_sqlite(path):
            raise FlagshimError(f"{path}: exists, and is not a flagshim trace", hint)
        trace = TraceFile(path)
        try:
            trace.set_up()
            return Session(path, trace.add_session(row), made)
        finally:
            trace.close()
    except (sqlite3.Error, OSError) as error:
        if made:
            path.unlink(missing_ok=True)
        cause = error.strerror if isinstance(error, OSError) else _explain(error)
        raise FlagshimError(f"trace {path}: {cause}", hint) from None


def take_back(session: Session) -> None:
    """Remove a session that never began, as far as that is possible."""
    with contextlib.suppress(sqlite3.Error, OSError):
        trace = TraceFile(session.trace)
        trace.remove_session(session)
        trace.close()


def _make(path: Path) -> bool:
    """Make an empty file; False if there is one."""
    try:
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        return False
    return True


def _looks_like_sqlite(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _explain(error: sqlite3.Error) -> str:
    text = str(error)
    if "readonly" in text:
        return "you may not write to it"
    if "locked" in text:
        return "locked by another program"
    if "unable to open" in text:
        return "cannot be created there"
    return text
