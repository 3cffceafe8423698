"""A trace as a Parquet file (https://parquet.apache.org), a row for each record.

Every row says its session, host and CI job, so that the files of many machines are one table
to whatever reads them together, without a join. Columns of the same value all along cost next
to nothing in this format. Needs the extra "parquet".
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flagshim.errors import FlagshimError
from flagshim.exports.records import Kind, Record, plain

_ROWS = 10_007
"""Rows held at a time."""
_NAMES = ("program", "path", "resolved")
_TEXT_MEMBERS = (
    "syscall", "abi", "access", "decision", "rule", "reason", "errno", "blind_spot", "text",
)  # fmt: skip
_INT_MEMBERS = (
    "pid", "tid", "flags_before", "flags_after", "owner_uid", "fsuid", "fd", "tries", "count",
    "cleared", "still_refused", "kept", "failed", "last_ns", "ended_ns", "seen", "lost",
)  # fmt: skip
_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("time", pa.timestamp("us", "UTC")),
        ("time_ns", pa.int64()),
        ("session_uid", pa.string()),
        ("host", pa.string()),
        ("machine", pa.string()),
        ("kernel", pa.string()),
        ("flagshim", pa.string()),
        ("engine", pa.string()),
        ("uid", pa.int64()),
        ("cwd", pa.string()),
        ("command", pa.list_(pa.string())),
        ("exit_status", pa.int64()),
        ("labels", pa.map_(pa.string(), pa.string())),
        *((name, pa.string()) for name in _NAMES),
        *((f"{name}_bytes", pa.binary()) for name in _NAMES),
        *((name, pa.string()) for name in _TEXT_MEMBERS),
        ("flags_cleared", pa.list_(pa.string())),
        *((name, pa.int64()) for name in _INT_MEMBERS),
        ("rules", pa.string()),
    ]
)
"""docs/fleet.md describes the columns."""


def write(records: Iterable[Record], file: Path) -> int:
    """Write records to a file, which is replaced as a whole or not at all.

    Returns:
        How many rows.

    Raises:
        FlagshimError: the file cannot be written.
    """
    rows = (_row(record) for record in records)
    count = 0
    with (
        _replaced(file) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer,
    ):
        while batch := list(islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, _SCHEMA))
            count += len(batch)
    return count


def _row(record: Record) -> dict[str, Any]:
    session, members = record.source.session, record.members
    row = {
        **members,
        "kind": str(record.kind),
        "time": record.time_ns // 1000,
        "time_ns": record.time_ns,
        "session_uid": record.source.uid,
        "host": session.host,
        "machine": session.machine,
        "kernel": session.kernel,
        "flagshim": session.flagshim,
        "engine": session.engine,
        "uid": session.uid,
        "cwd": plain(session.cwd),
        "command": [plain(word) for word in session.command],
        "exit_status": session.exit_status,
        "labels": list(record.source.labels.items()),
    }
    if record.kind is Kind.SESSION:
        row["rules"] = json.dumps(session.rules)
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
