"""A trace file as its writer sees it: made, recognised, added to."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from flagshim.errors import FlagshimError
from flagshim.trace import schema

_BUSY_SECONDS = 2.0

BlindSpot = tuple[str, str | bytes, int]
"""(kind, program, count so far)."""


class TraceFile:
    """An open trace. Methods raise sqlite3.Error; `create_or_extend` explains itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(os.fsencode(path), isolation_level=None, timeout=_BUSY_SECONDS)
        # An event is on its way to the disk when it is written; waiting for it to arrive
        # would save it from a power cut only.
        self._db.execute("PRAGMA synchronous = OFF")

    @classmethod
    def create_or_extend(cls, path: Path) -> Self:
        """Open an existing trace, or make a new one.

        Raises:
            FlagshimError: the file is something else, or cannot be written.
        """
        hint = "choose another file with -o"
        existed = path.exists()
        try:
            if existed and not path.is_file():
                raise FlagshimError(f"{path}: not a regular file", hint)
            if existed and path.stat().st_size and not _looks_like_sqlite(path):
                raise FlagshimError(f"{path}: exists, and is not a flagshim trace", hint)
            trace = cls(path)
            try:
                trace._set_up(hint)
            except BaseException:
                trace.close()
                if not existed:
                    path.unlink(missing_ok=True)
                raise
        except (sqlite3.Error, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) else _explain(error)
            raise FlagshimError(f"trace {path}: {cause}", hint) from None
        return trace

    def _set_up(self, hint: str) -> None:
        application_id = self._pragma("application_id")
        version = self._pragma("user_version")
        empty = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if empty and not application_id:
            self._db.executescript(
                f"BEGIN IMMEDIATE; {schema.DDL}"
                f"PRAGMA application_id = {schema.APPLICATION_ID};"
                f"PRAGMA user_version = {schema.VERSION}; COMMIT;"
            )
        elif application_id != schema.APPLICATION_ID:
            raise FlagshimError(f"{self.path}: exists, and is not a flagshim trace", hint)
        elif version != schema.VERSION:
            what = "a newer" if version > schema.VERSION else "an older"
            raise FlagshimError(f"{self.path}: a trace of {what} flagshim (schema {version})", hint)

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

    def remove_session(self, session_id: int) -> None:
        """Take a session back that never began."""
        self._db.execute("DELETE FROM session WHERE id = ?", (session_id,))

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


def _looks_like_sqlite(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _explain(error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text:
        return "locked by another program"
    if "unable to open" in text:
        return "cannot be created there"
    return text
