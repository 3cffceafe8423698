"""Reading a trace: its sessions, its events, and sums over them made by SQLite."""

import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, TracebackType
from typing import Any, Self
from urllib.parse import quote

from flagshim.errors import FlagshimError
from flagshim.trace import schema, sums
from flagshim.trace.events import OpenEvent
from flagshim.trace.records import (
    BlindSpot,
    NamedTally,
    Opened,
    Session,
    Span,
    Tally,
    TracedEvent,
    Trouble,
)

_SINCE = "(?1 IS NULL OR time_ns >= ?1)"
_EVENT_COLUMNS = ", ".join(("event.id", "session_id", *OpenEvent._fields))

_INT, _INT_OR_NONE = (int,), (int, NoneType)
_TEXT, _TEXT_OR_NONE = (str,), (str, NoneType)
_NAME, _NAME_OR_NONE = (str, bytes), (str, bytes, NoneType)
_STEPS = 100_003
"""Instructions of SQLite's virtual machine between two ticks, about a millisecond."""
_NAME_A_TRACE = "name a file that flagshim wrote"

_Kinds = tuple[tuple[type, ...], ...]
_SESSION_KINDS: _Kinds = (
    _INT, _INT, _INT_OR_NONE, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _INT, _NAME, _TEXT, _TEXT,
    _INT_OR_NONE, _INT, _INT,
)  # fmt: skip
_EVENT_KINDS: _Kinds = (
    _INT, _INT, _INT, _INT, _INT, _NAME, _TEXT, _TEXT, _NAME_OR_NONE, _NAME_OR_NONE, _TEXT,
    _INT, _INT, _TEXT, _TEXT_OR_NONE, _TEXT, _INT_OR_NONE, _INT_OR_NONE, _INT_OR_NONE,
    _TEXT_OR_NONE, _INT,
)  # fmt: skip
_TALLY_KINDS: _Kinds = (_INT,) * len(Tally._fields)
_OPENED_KINDS: _Kinds = (_TEXT_OR_NONE, _NAME, _NAME_OR_NONE, *_TALLY_KINDS, _INT, _INT)


class TraceReader:
    """A trace opened for reading, as it was at one moment: a context manager.

    Nothing is written, neither to the trace nor beside it, but for the -shm file that
    SQLite makes where a killed writer left only a -wal file. A supervisor may go on
    writing meanwhile; what it writes after the reader was opened is not seen.

    Args:
        path: the trace.
        tick: called now and then while SQLite is at work.

    Raises:
        FlagshimError: the file is not a trace that can be read. Every method raises
            it too, also in the middle of an iteration: damage shows where it is.
    """

    def __init__(
        self, path: str | os.PathLike[str], tick: Callable[[], None] | None = None
    ) -> None:
        self.path = os.fspath(path)
        self._file = os.path.realpath(self.path)
        self._status = _regular_file(self.path)
        self._immutable = _is_at_rest(self._file)
        self._summed: dict[int | None, str] = {}
        try:
            self._connection = _connect(self._file, self._immutable)
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from error
        if tick is not None:
            self._connection.set_progress_handler(tick, _STEPS)
        try:
            self._begin()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; iterations begun before cannot go on."""
        self._connection.close()

    def sessions(self, since_ns: int | None = None, limit: int | None = None) -> list[Session]:
        """Return the newest `limit` sessions (None: all) in the order they were started.

        Args:
            since_ns: leave out those that ended before, in nanoseconds since the epoch.
            limit: at least 1.
        """
        query = """
            SELECT id, started_ns, ended_ns, flagshim, engine, host, kernel, machine, uid, cwd,
                   command, rules, exit_status, seen, lost
            FROM session WHERE ?1 IS NULL OR ended_ns IS NULL OR ended_ns >= ?1
            ORDER BY started_ns DESC, id DESC LIMIT ?2"""
        rows = self._rows(query, _SESSION_KINDS, since_ns, _limit(limit))
        return [self._session(row) for row in rows][::-1]

    def blind_spots(self) -> dict[int, list[BlindSpot]]:
        """What may have opened files unseen, by session ID; the most frequent first."""
        query = """
            SELECT session_id, kind, program, count FROM blind_spot
            ORDER BY session_id, count DESC, kind, program"""
        spots: dict[int, list[BlindSpot]] = {}
        for session_id, *spot in self._rows(query, (_INT, _TEXT, _NAME, _INT)):
            spots.setdefault(session_id, []).append(BlindSpot(*spot))
        return spots

    def labels(self) -> dict[int, dict[str, str]]:
        """What else is known of the sessions, such as their CI job, by session ID."""
        found: dict[int, dict[str, str]] = {}
        query = "SELECT session_id, name, value FROM label ORDER BY session_id, name"
        for session_id, name, value in self._rows(query, (_INT, _TEXT, _TEXT)):
            found.setdefault(session_id, {})[name] = value
        return found

    def tables(self) -> dict[str, list[str]]:
        """The names of all tables that belong to sessions, and of their columns."""
        query = """
            SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c
            WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' ORDER BY m.name, c.cid"""
        found: dict[str, list[str]] = {}
        for table, column in self._rows(query, (_TEXT, _TEXT)):
            found.setdefault(table, []).append(column)
        return found

    def rows(self, table: str, kinds: Mapping[str, tuple[type, ...]]) -> Iterator[tuple[Any, ...]]:
        """All rows of a table as they are, in the order of writing.

        Args:
            table: its name.
            kinds: the columns wanted, and the types each may have.
        """
        order = " ORDER BY id" if "id" in kinds else ""
        query = f"SELECT {', '.join(kinds)} FROM {table}{order}"
        return self._rows(query, tuple(kinds.values()))

    def events(
        self,
        since_ns: int | None = None,
        limit: int | None = None,
        refused_first: bool = False,
    ) -> Iterator[TracedEvent]:
        """The newest `limit` events (None: all) in the order of time, one after another.

        Args:
            since_ns: leave out what was seen before, in nanoseconds since the epoch.
            limit: at least 1.
            refused_first: leave out refused ones only where even they are more than `limit`.
        """
        machines = {session.id: session.machine for session in self.sessions()}
        query = f"SELECT {_EVENT_COLUMNS} FROM event WHERE {_SINCE}"
        if limit is None:
            query += " ORDER BY time_ns, id LIMIT ?2"
        else:
            first = f"{sums.REFUSED} DESC, " if refused_first else ""
            query += f" ORDER BY {first}time_ns DESC, id DESC LIMIT ?2"
            query = f"SELECT * FROM ({query}) ORDER BY time_ns, id"
        for row in self._rows(query, _EVENT_KINDS, since_ns, _limit(limit)):
            machine = machines.get(row[1])
            if machine is None:
                raise self._damaged("an event belongs to no session")
            yield TracedEvent(row[1], machine, OpenEvent(*row[2:]))

    def by_session(self) -> dict[int, Tally]:
        """All events, dropped ones too, counted by session ID; where there are any."""
        query = f"SELECT session_id, {sums.TALLY} FROM {self._sums(None)} GROUP BY session_id"
        return {row[0]: Tally(*row[1:]) for row in self._rows(query, (_INT, *_TALLY_KINDS))}

    def opened(
        self, since_ns: int | None = None, session: int | None = None, limit: int | None = None
    ) -> Iterator[Opened]:
        """Events counted by file, program and rule; first where most were refused, then opened.

        Args:
            since_ns: leave out what was seen before, in nanoseconds since the epoch.
            session: only this one's; None: all.
            limit: at most so many; None: all.
        """
        query = f"""
            SELECT {sums.OPENED} FROM {self._sums(since_ns)} WHERE ?1 IS NULL OR session_id = ?1
            GROUP BY name, program, rule
            ORDER BY sum(still_refused + denied) DESC, sum(opens) DESC, name, program, rule
            LIMIT ?2"""
        for row in self._rows(query, _OPENED_KINDS, session, _limit(limit)):
            rule, program, name, *tally, denied, spoiled = row
            yield Opened(rule, program, name, Tally(*tally), denied, spoiled)

    def by_path(
        self, since_ns: int | None = None, limit: int | None = None
    ) -> Iterator[NamedTally]:
        """Events counted by opened file, the most frequent first; names as `resolved`.

        The name the program gave (`path`) stands in where no other is known.

        Args:
            since_ns: leave out what was seen before, in nanoseconds since the epoch.
            limit: at most so many files; None: all.
        """
        return self._by("name", since_ns, limit)

    def by_program(
        self, since_ns: int | None = None, limit: int | None = None
    ) -> Iterator[NamedTally]:
        """Events counted by program, the most frequent first; arguments as for `by_path`."""
        return self._by("program", since_ns, limit)

    def dropped(self) -> dict[int, int]:
        """How many events are there only as counts, because they were not to be kept, by session.

        They are in all sums; of those with a time to begin at, if none of them was before it.
        """
        query = "SELECT session_id, sum(opens) FROM dropped GROUP BY session_id"
        return dict(self._rows(query, (_INT, _INT)))

    def troubles(self) -> dict[int, list[Trouble]]:
        """What flagshim had to complain of, by session ID, in the order of time."""
        query = "SELECT session_id, time_ns, text FROM trouble ORDER BY time_ns, rowid"
        found: dict[int, list[Trouble]] = {}
        for session_id, *trouble in self._rows(query, (_INT, _INT, _TEXT)):
            found.setdefault(session_id, []).append(Trouble(*trouble))
        return found

    def timeline(self, since_ns: int | None, start_ns: int, width_ns: int) -> list[Span]:
        """Events counted by time, for spans in which there were any; dropped ones are in none.

        Args:
            since_ns: leave out what was seen before, in nanoseconds since the epoch.
            start_ns: when the first span begins; nothing may have been before.
            width_ns: how long a span is, at least 1.
        """
        kinds = (_INT,) * len(Span._fields)
        rows = self._rows(sums.TIMELINE, kinds, since_ns, start_ns, width_ns)
        return [Span(*row) for row in rows]

    def count(self, since_ns: int | None = None) -> tuple[int, int, int]:
        """Return how many events there are, and the time of the first and last; 0 if none."""
        query = f"""
            SELECT count(*), coalesce(min(time_ns), 0), coalesce(max(time_ns), 0)
            FROM event WHERE {_SINCE}"""
        (row,) = self._rows(query, (_INT,) * 3, since_ns)
        return row[0], row[1], row[2]

    def _by(self, name: str, since_ns: int | None, limit: int | None) -> Iterator[NamedTally]:
        query = f"""
            SELECT {name}, {sums.TALLY} FROM {self._sums(since_ns)}
            GROUP BY {name} ORDER BY opens DESC, {name} LIMIT ?1"""
        kinds = (_NAME_OR_NONE, *_TALLY_KINDS)
        for row in self._rows(query, kinds, _limit(limit)):
            yield NamedTally(row[0], Tally(*row[1:]))

    def _sums(self, since_ns: int | None) -> str:
        """Return the name of the table of sums, made if it was not asked for before."""
        if since_ns not in self._summed:
            table = f"sums_{len(self._summed)}"
            make, fill = sums.create(table)
            with self._explained():
                self._connection.execute(make)
                self._connection.execute(fill, (since_ns,))
            self._summed[since_ns] = table
        return self._summed[since_ns]

    def _begin(self) -> None:
        """Refuse what is no trace of ours, then hold on to this moment.

        Without a transaction each query would see another state of a running session,
        and its sums would not agree.
        """
        with self._explained():
            self._connection.execute("BEGIN")
            (application,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application != schema.APPLICATION_ID:
            what = "an SQLite database, but no trace" if self._status.st_size else "empty"
            raise FlagshimError(f"{self.path}: {what}", _NAME_A_TRACE)
        if version > schema.VERSION:
            raise FlagshimError(
                f"{self.path}: written by a newer flagshim "
                f"(layout {version}, this one reads up to {schema.VERSION})",
                "upgrade flagshim",
            )
        with self._explained():
            self._stand_in_for_missing_tables()

    def _stand_in_for_missing_tables(self) -> None:
        """Have all tables, empty and in memory where the trace is older than they are."""
        found = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        for table, statement in schema.TABLES.items():
            if table in schema.ADDED_LATER and table not in found:
                self._connection.execute(statement.replace("TABLE", "TEMP TABLE", 1))

    def _rows(self, query: str, kinds: _Kinds, *arguments: int | None) -> Iterator[tuple[Any, ...]]:
        sound: set[tuple[type, ...]] = set()
        with self._explained():
            for row in self._connection.execute(query, arguments):
                # A damaged record can still be one for SQLite, which does not mind what
                # type a column holds. There are a million rows, and few ways to type one.
                types = tuple(map(type, row))
                if types not in sound:
                    if not all(type_ in kind for type_, kind in zip(types, kinds, strict=True)):
                        raise self._damaged("a column holds a value of the wrong type")
                    sound.add(types)
                yield row
        self._check_unchanged()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what an error of SQLite's means for a trace."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from error
        except UnicodeDecodeError as error:  # an error message of SQLite's quoted the damage
            raise self._damaged("a name in it is not UTF-8") from error

    def _session(self, row: tuple[Any, ...]) -> Session:
        values = dict(zip(Session.__dataclass_fields__, row, strict=True))
        try:
            command, rules = json.loads(values["command"]), json.loads(values["rules"])
            if not (isinstance(command, list) and isinstance(rules, list)):
                raise TypeError
            values["command"] = tuple(_argument(argument) for argument in command)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged("a session's command or rules are no JSON array") from error
        return Session(**{**values, "rules": rules})

    def _check_unchanged(self) -> None:
        """Refuse to vouch for what was read if an immutable file turns out not to be."""
        if not self._immutable:
            return
        try:
            status = os.stat(self._file)
        except OSError:
            return  # Deleted or moved: what is open stays as it was.
        if _stamp(status) != _stamp(self._status):
            raise FlagshimError(f"{self.path}: changed while it was read", "run the command again")

    def _damaged(self, detail: str) -> FlagshimError:
        self._check_unchanged()
        return FlagshimError(
            f"{self.path}: damaged: {detail}", "`sqlite3 TRACE .recover` may save a part of it"
        )

    def _refusal(self, error: sqlite3.DatabaseError) -> FlagshimError:
        """Return what SQLite's error means for a trace."""
        # Python's own, about text that is not UTF-8, has no code.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        match code:
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_ERROR:
                return self._damaged(str(error))
            case sqlite3.SQLITE_NOTADB:
                return FlagshimError(f"{self.path}: not an SQLite database", _NAME_A_TRACE)
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return FlagshimError(f"{self.path}: locked by another program", "try again")
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY:
                if not os.access(self._file, os.R_OK, effective_ids=True):
                    return _not_permitted(self.path)
                return FlagshimError(
                    f"{self.path}: SQLite cannot open it",
                    "copy it, with the files of that name and -wal or -journal behind it, "
                    "to a folder you can write to, and read the copy",
                )
        return FlagshimError(f"{self.path}: {error}")


def _regular_file(path: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FlagshimError(f"{path}: no such file", _NAME_A_TRACE) from error
    except PermissionError as error:
        raise _not_permitted(path) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FlagshimError(f"{path}: {reason}") from error
    if stat.S_ISDIR(status.st_mode):
        raise FlagshimError(f"{path}: a directory", "name a trace in it")
    if not stat.S_ISREG(status.st_mode):
        raise FlagshimError(f"{path}: not a regular file", _NAME_A_TRACE)
    return status


def _not_permitted(path: str) -> FlagshimError:
    return FlagshimError(f"{path}: permission denied", "read it as its owner or as root")


def _is_at_rest(file: str) -> bool:
    """Whether this is a trace in WAL mode that nobody has open.

    Such a file is opened as immutable. SQLite would otherwise make a -wal and a -shm
    file next to it and leave them there: impossible in a folder that is not ours to
    write to, and where it is possible the owner's next session may not be allowed to
    write to ours, https://sqlite.org/wal.html#read_only_databases.
    """
    if os.path.exists(f"{file}-shm"):
        return False
    try:
        if os.stat(f"{file}-wal").st_size:
            return False
    except OSError:
        pass
    # Closing any descriptor of a file drops all locks this process has on it, fcntl(2):
    # not to be done while an SQLite connection in this process may rely on them. One in
    # WAL mode has made a -shm file.
    try:
        with open(file, "rb") as stream:
            header = stream.read(20)
    except OSError:
        return False
    # Write and read version, https://sqlite.org/fileformat2.html#file_format_version_numbers
    return header[18:20] == b"\2\2"


def _connect(file: str, immutable: bool) -> sqlite3.Connection:
    uri = f"file://{quote(os.fsencode(file))}?mode=ro{'&immutable=1' if immutable else ''}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


def _argument(argument: object) -> str | bytes:
    """An argument as it was: JSON has bytes that are not UTF-8 as lone surrogates, PEP 383."""
    if not isinstance(argument, str):
        raise TypeError
    raw = argument.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
