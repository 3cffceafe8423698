"""One trace of many: sessions copied from other traces, from other machines too."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import NamedTuple

from flagshim.errors import FlagshimError
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import Session
from flagshim.trace.store import PATIENT_SECONDS, make_trace

_KEY = ("started_ns", "host", "uid", "command")
"""What tells a session from every other; its ID is only that of a row."""
_TYPES: dict[str, tuple[type, ...]] = {"INTEGER": (int,), "TEXT": (str,), "": (str, bytes)}

_Kinds = dict[str, tuple[type, ...]]


class Merged(NamedTuple):
    """How many sessions came of a trace."""

    added: int = 0
    renewed: int = 0
    """Were there, as they had been earlier."""
    known: int = 0
    """Were there, as they are."""


class Merging:
    """A trace that others are merged into. A context manager.

    Args:
        path: the trace, made if missing.

    Raises:
        FlagshimError: it is something else, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = make_trace(path)
        self._db = sqlite3.connect(
            os.fsencode(self.path), isolation_level=None, timeout=PATIENT_SECONDS
        )
        self._tables = {
            table: _kinds(self._db, table)
            for (table,) in self._db.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            ).fetchall()
        }

    def __enter__(self) -> "Merging":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(
        self,
        source: Path,
        labels: Mapping[str, str] | None = None,
        tick: Callable[[], None] | None = None,
    ) -> Merged:
        """Copy what is not there yet: the whole source, or nothing.

        A session that is there already is copied again if the source knows more of it, because
        it still ran when it was merged before.

        Args:
            source: a trace.
            labels: what else is known of all its sessions.
            tick: called now and then while at work.

        Raises:
            FlagshimError: the source is not a trace that can be read, or the target cannot be
                written.
        """
        if source.exists() and source.samefile(self.path):
            raise FlagshimError(f"{source}: is what to merge into", "name other traces")
        db = self._db
        with TraceReader(source, tick) as reader:
            try:
                db.execute("BEGIN IMMEDIATE")
                merged = self._copy(reader, labels or {})
                db.execute("COMMIT")
            except sqlite3.Error as error:
                raise FlagshimError(
                    f"{self.path}: {error}", "nothing of this trace was merged; try again"
                ) from None
            finally:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
        return merged

    def _copy(self, reader: TraceReader, labels: Mapping[str, str]) -> Merged:
        columns = reader.tables()
        self._check(reader, columns)
        places, merged = self._place(reader, columns["session"])
        if not any(places.values()):
            return merged
        for table, names in columns.items():
            if table == "session":
                continue
            kinds = {name: kind for name, kind in self._tables[table].items() if name in names}
            kept = [name for name in kinds if name != "id"]
            marks = ", ".join("?" * len(kept))
            self._db.executemany(
                f"INSERT INTO {table} ({', '.join(kept)}) VALUES ({marks})",
                _moved(reader, table, kinds, places),
            )
        self._db.executemany(
            "INSERT OR REPLACE INTO label VALUES (?, ?, ?)",
            ((id_, *label) for id_ in places.values() if id_ for label in labels.items()),
        )
        return merged

    def _check(self, reader: TraceReader, columns: dict[str, list[str]]) -> None:
        """Refuse what we could only copy in part."""
        for table, names in columns.items():
            if not set(names) <= set(self._tables.get(table, ())):
                raise FlagshimError(
                    f"{reader.path}: written by a newer flagshim (it has {table} as we do not)",
                    "upgrade flagshim",
                )

    def _place(
        self, reader: TraceReader, columns: list[str]
    ) -> tuple[dict[int, int | None], Merged]:
        """Insert sessions; return the ID here of each one there, None for one to be left out."""
        db = self._db
        by_id = {session.id: session for session in reader.sessions()}
        kinds = {name: self._tables["session"][name] for name in columns}
        places: dict[int, int | None] = {}
        added = renewed = known = 0
        condition = " AND ".join(f"{name} = ?" for name in _KEY)
        for values in reader.rows("session", kinds):
            row = dict(zip(kinds, values, strict=True))
            id_ = row.pop("id")
            found = db.execute(
                f"SELECT id, ended_ns, seen FROM session WHERE {condition}",
                [row[name] for name in _KEY],
            ).fetchone()
            if found and not _is_later(by_id[id_], *found[1:]):
                places[id_] = None
                known += 1
                continue
            if found:
                self._remove(found[0])
                renewed += 1
            else:
                added += 1
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            statement = f"INSERT INTO session ({names}) VALUES ({marks})"
            places[id_] = db.execute(statement, tuple(row.values())).lastrowid
        return places, Merged(added, renewed, known)

    def _remove(self, session_id: int) -> None:
        for table in self._tables:
            column = "id" if table == "session" else "session_id"
            self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (session_id,))


def _kinds(db: sqlite3.Connection, table: str) -> _Kinds:
    """Return the types that the columns of a table may have, as its declaration has them."""
    found = {}
    for _, name, type_, required, _, key in db.execute(f"PRAGMA table_info({table})").fetchall():
        kind = _TYPES[type_]
        found[name] = kind if required or key else (*kind, NoneType)
    return found


def _is_later(session: Session, ended_ns: int | None, seen: int) -> bool:
    """Tell whether `session` is a later state of the one that ended and saw so far."""
    return session.seen > seen or (session.ended_ns is not None and ended_ns is None)


def _moved(
    reader: TraceReader, table: str, kinds: _Kinds, places: dict[int, int | None]
) -> Iterator[tuple[object, ...]]:
    names = list(kinds)
    position, first = names.index("session_id"), names.index("id") + 1 if "id" in names else 0
    for row in reader.rows(table, kinds):
        if row[position] not in places:
            raise FlagshimError(
                f"{reader.path}: damaged: a row of {table} belongs to no session",
                "`sqlite3 TRACE .recover` may save a part of it",
            )
        place = places[row[position]]
        if place is not None:
            yield (*row[first:position], place, *row[position + 1 :])
