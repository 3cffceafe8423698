"""A trace as a Parquet file (https://parquet.apache.org), a row for each record.

Every row says its session, host and CI job, so that the files of many machines are one table
to whatever reads them together, without a join. Columns of the same value all along cost next
to nothing in this format. Needs the extra "parquet".
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flagshim.errors import FlagshimError
from flagshim.exports.records import Kind, Record, Source, plain

_ROWS = 10_007
"""Rows held at a time."""
_NAMES = ("program", "path", "resolved")
_TEXT = (
    "syscall", "abi", "access", "decision", "rule", "reason", "errno", "blind_spot", "text",
)  # fmt: skip
_INTEGERS = (
    "pid", "tid", "flags_before", "flags_after", "owner_uid", "fsuid", "fd", "tries", "count",
    "cleared", "still_refused", "kept", "failed", "last_ns", "ended_ns", "seen", "lost",
)  # fmt: skip
_OF_SESSION: tuple[tuple[str, pa.DataType, Callable[[Source], Any]], ...] = (
    ("session_uid", pa.string(), lambda source: source.uid),
    ("host", pa.string(), lambda source: source.session.host),
    ("machine", pa.string(), lambda source: source.session.machine),
    ("kernel", pa.string(), lambda source: source.session.kernel),
    ("flagshim", pa.string(), lambda source: source.session.flagshim),
    ("engine", pa.string(), lambda source: source.session.engine),
    ("uid", pa.int64(), lambda source: source.session.uid),
    ("cwd", pa.string(), lambda source: plain(source.session.cwd)),
    ("command", pa.list_(pa.string()), lambda source: list(map(plain, source.session.command))),
    ("exit_status", pa.int64(), lambda source: source.session.exit_status),
    ("labels", pa.map_(pa.string(), pa.string()), lambda source: list(source.labels.items())),
)
_OF_RECORD: tuple[tuple[str, pa.DataType], ...] = (
    ("kind", pa.string()),
    ("time", pa.timestamp("us", "UTC")),
    ("time_ns", pa.int64()),
    *((name, pa.string()) for name in _NAMES),
    *((f"{name}_bytes", pa.binary()) for name in _NAMES),
    *((name, pa.string()) for name in _TEXT),
    ("flags_cleared", pa.list_(pa.string())),
    *((name, pa.int64()) for name in _INTEGERS),
    ("rules", pa.string()),
)
_SCHEMA = pa.schema([*_OF_RECORD, *((name, kind) for name, kind, _ in _OF_SESSION)])
"""docs/fleet.md describes the columns."""


def write(records: Iterable[Record], file: Path) -> int:
    """Write records to a file, which is replaced as a whole or not at all.

    Returns:
        How many rows.

    Raises:
        FlagshimError: the file cannot be written.
    """
    remaining = iter(records)
    count = 0
    with (
        _replaced(file) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer,
    ):
        while some := list(islice(remaining, _ROWS)):
            writer.write_batch(_batch(some))
            count += len(some)
    return count


def _batch(records: list[Record]) -> pa.RecordBatch:
    rows = [_row(record) for record in records]
    known = set().union(*rows)
    columns = [
        pa.array([row.get(name) for row in rows], kind)
        if name in known
        else pa.nulls(len(rows), kind)
        for name, kind in _OF_RECORD
    ]
    # Of one session there are many records: its values are made once, and pointed to.
    sources = {record.source.uid: record.source for record in records}
    position = {uid: number for number, uid in enumerate(sources)}
    indices = pa.array([position[record.source.uid] for record in records])
    for _, kind, value in _OF_SESSION:
        columns.append(pa.array(map(value, sources.values()), kind).take(indices))
    return pa.record_batch(columns, schema=_SCHEMA)


def _row(record: Record) -> dict[str, Any]:
    """Return what a record says of itself, by column."""
    members = record.members
    row = {
        **members,
        "kind": str(record.kind),
        "time": record.time_ns // 1000,
        "time_ns": record.time_ns,
    }
    if record.kind is Kind.SESSION:
        row["rules"] = json.dumps(record.source.session.rules)
    for name in _NAMES:
        value = members.get(name)
        if isinstance(value, bytes):
            row[f"{name}_bytes"] = value
            row[name] = plain(value)
    return row


@contextlib.contextmanager
def _replaced(file: Path) -> Iterator[str]:
    """Give the name of a temporary file that becomes `file` if all goes well."""
    file = Path(os.path.realpath(file))
    if file.exists() and not _may_go(file):
        raise FlagshimError(f"{file}: exists, and is no Parquet file", "choose another name")
    try:
        fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        os.close(fd)
        try:
            yield temporary
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.rename(temporary, file)
        finally:
            if os.path.lexists(temporary):
                os.unlink(temporary)
    except OSError as error:
        raise FlagshimError(
            f"{file}: {error.strerror or error}", "write it to another folder"
        ) from None


def _may_go(file: Path) -> bool:
    """Tell whether a file is one that an earlier export may have written."""
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        return stream.read(4) in (b"PAR1", b"")
