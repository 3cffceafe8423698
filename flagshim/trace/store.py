"""A trace file as its writer sees it: made, recognised, added to."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from flagshim.errors import FlagshimError
from flagshim.trace import schema, sums
from flagshim.trace.bounds import Bound

_BUSY_SECONDS = 2.0
"""How long to wait for another writer while opens are waiting for us."""
PATIENT_SECONDS = 10.0
"""How long otherwise."""

BlindSpot = tuple[str, str | bytes, int]
"""(kind, program, how often since the last time)."""


class Batch(NamedTuple):
    """What is added to a session at once: rows, and how much its counts grow."""

    events: Sequence[tuple[object, ...]] = ()
    seen: int = 0
    lost: int = 0
    blind_spots: Sequence[BlindSpot] = ()
    troubles: Sequence[tuple[int, str]] = ()
    """(nanoseconds since the epoch, one line)."""


class TraceFile:
    """An open trace. Methods raise sqlite3.Error; `begin_session` explains it.

    Args:
        path: absolute; the file exists.
        busy_seconds: how long to wait for another writer.
    """

    def __init__(self, path: Path, busy_seconds: float = _BUSY_SECONDS) -> None:
        self.path = path
        # mode=rw: if somebody deletes a trace in use, no empty one is to be made in its place.
        uri = f"file://{quote(os.fsencode(path))}?mode=rw"
        self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy_seconds)
        self._inode = os.stat(path).st_ino
        # An event is on its way to the disk when it is written; waiting for it to arrive
        # would save it from a power cut only.
        self._db.execute("PRAGMA synchronous = OFF")

    def set_up(self) -> None:
        """Make an empty file a trace; check one that is not.

        Raises:
            FlagshimError: it is something else, or of another version of flagshim.
        """
        hint = "choose another file with -o"
        with self._transaction() as db:  # two may be about to make it
            application_id = self._pragma("application_id")
            version = self._pragma("user_version")
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables and not application_id:
                db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {schema.VERSION}")
            elif application_id != schema.APPLICATION_ID:
                raise FlagshimError(f"{self.path}: exists, and is not a flagshim trace", hint)
            elif version != schema.VERSION:
                what = "a newer" if version > schema.VERSION else "an older"
                cause = f"a trace of {what} flagshim (schema {version})"
                raise FlagshimError(f"{self.path}: {cause}", hint)
            for statement in schema.TABLES.values():  # an older trace may lack the last ones
                db.execute(statement)

    def is_there(self) -> bool:
        """Tell whether the file is still what its name leads to."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

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

    def add_labels(self, session_id: int, labels: Mapping[str, str]) -> None:
        """Insert rows of the table `label`."""
        self._db.executemany(
            "INSERT OR REPLACE INTO label VALUES (?, ?, ?)",
            ((session_id, name, value) for name, value in labels.items()),
        )

    def remove_session(self, session: "Session") -> None:
        """Take a session back that never began, and the file if it was made for it."""
        db = self._db
        db.execute("BEGIN EXCLUSIVE")
        for table, column in (
            ("session", "id"),
            ("trouble", "session_id"),
            ("label", "session_id"),
        ):
            db.execute(f"DELETE FROM {table} WHERE {column} = ?", (session.id,))
        if session.made_file and not db.execute("SELECT count(*) FROM session").fetchone()[0]:
            self.path.unlink(missing_ok=True)
        db.execute("COMMIT")

    def counts(self, session_id: int) -> tuple[int, int]:
        """Return how many calls of a session are accounted for, and how many of them are lost."""
        query = "SELECT seen, lost FROM session WHERE id = ?"
        seen, lost = self._db.execute(query, (session_id,)).fetchone()
        return int(seen), int(lost)

    def append(self, session_id: int, batch: Batch) -> None:
        """Add to a session, all or nothing.

        Counts grow by what is said here: a session may have more than one writer in its
        life, each of which knows of its own events only.
        """
        with self._transaction() as db:
            db.executemany(schema.INSERT_EVENT, ((session_id, *event) for event in batch.events))
            query = "SELECT 1 FROM session WHERE id = ? AND ended_ns IS NOT NULL"
            if db.execute(query, (session_id,)).fetchone():
                self._find_again(session_id, len(batch.events))
            else:
                db.execute(
                    "UPDATE session SET seen = seen + ?, lost = lost + ? WHERE id = ?",
                    (batch.seen, batch.lost, session_id),
                )
            db.executemany(
                "INSERT INTO blind_spot VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET count = count + excluded.count",
                ((session_id, *spot) for spot in batch.blind_spots),
            )
            db.executemany(
                "INSERT INTO trouble VALUES (?, ?, ?)",
                ((session_id, *trouble) for trouble in batch.troubles),
            )

    def lose_what_is_missing(self, session_id: int, calls: int) -> None:
        """Count as lost what writers of a session, who were killed, have not written.

        Args:
            session_id: the session, whose events are written but for those of a writer that
                is still behind (`_find_again`).
            calls: how many were looked at.
        """
        with self._transaction() as db:
            there = self._events_of(session_id)
            db.execute(
                "UPDATE session SET lost = max(lost, :calls - :there),"
                " seen = :there + max(lost, :calls - :there) WHERE id = :id",
                {"id": session_id, "calls": calls, "there": there},
            )

    def _find_again(self, session_id: int, events: int) -> None:
        """Do not count as lost any more what a writer has written after the session's end."""
        self._db.execute(
            "UPDATE session SET lost = max(lost - :events, 0),"
            " seen = max(seen, :there + max(lost - :events, 0)) WHERE id = :id",
            {"id": session_id, "events": events, "there": self._events_of(session_id)},
        )

    def _events_of(self, session_id: int) -> int:
        """Count the events of a session, those that were not kept as well."""
        (count,) = self._db.execute(
            "SELECT (SELECT count(*) FROM event WHERE session_id = :id)"
            " + (SELECT coalesce(sum(opens), 0) FROM dropped WHERE session_id = :id)",
            {"id": session_id},
        ).fetchone()
        return int(count)

    def shorten(self, bound: Bound, slack: int = 0) -> None:
        """Turn the oldest events of the trace into counts by path, as far as `bound` asks.

        Events are written in the order of their IDs and only the oldest ever go, so IDs tell
        how many there are.

        Args:
            bound: what is to stay.
            slack: how many events there may be beyond it, for doing this seldom.
        """
        db = self._db
        first, last = db.execute("SELECT min(id), max(id) FROM event").fetchone()
        if first is None:
            return
        keep_from = first
        if bound.events is not None and last - first + 1 > bound.events + slack:
            keep_from = last - bound.events + 1
        if bound.seconds is not None:
            oldest = max(0, time.time_ns() - bound.seconds * 10**9)
            found = db.execute(
                "SELECT id FROM event WHERE time_ns >= ? ORDER BY id LIMIT 1", (oldest,)
            ).fetchone()
            keep_from = max(keep_from, found[0] if found else last + 1)
        if keep_from > first:
            with self._transaction():
                for statement in sums.DROP_EVENTS:
                    db.execute(statement, (keep_from,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
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


def begin_session(
    path: Path, row: Mapping[str, object], labels: Mapping[str, str] | None = None
) -> Session:
    """Open an existing trace, or make a new one, and add a session to it.

    Args:
        path: may be relative.
        row: columns of the table `session`.
        labels: what else is known of it.

    Raises:
        FlagshimError: the file is something else, or cannot be written.
    """
    with _made_ready(path) as (trace, made):
        session = Session(trace.path, trace.add_session(row), made)
        trace.add_labels(session.id, labels or {})
        return session


def make_trace(path: Path) -> Path:
    """Make a trace without sessions, unless there is a trace; return its absolute path.

    Raises:
        FlagshimError: the file is something else, or cannot be written.
    """
    with _made_ready(path, PATIENT_SECONDS) as (trace, _):
        return trace.path


@contextlib.contextmanager
def _made_ready(
    path: Path, busy_seconds: float = _BUSY_SECONDS
) -> Iterator[tuple[TraceFile, bool]]:
    """Open a trace, made if missing, with all its tables; say what is wrong in our words."""
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
        trace = TraceFile(path, busy_seconds)
        try:
            trace.set_up()
            yield trace, made
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
