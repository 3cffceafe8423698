"""The writer and its keeper, without any tracing."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.trace import schema
from flagshim.trace.events import OpenEvent
from flagshim.trace.store import begin_session
from flagshim.trace.writer import TraceWriter
from tests.support import HANGS, rows

EVENT = OpenEvent(
    1, 2, 3, "dd", "openat", "x86_64", "f", "/f", "r", 0o1000000, 0, "cleared", "noatime",
    "owner is not fsuid", 0, 1000, 3, None, 1,
)  # fmt: skip
SESSION = {
    "started_ns": 1, "flagshim": "0", "engine": "ptrace", "host": "h", "kernel": "k",
    "machine": "x86_64", "uid": 0, "cwd": "/", "command": "[]", "rules": "[]",
}  # fmt: skip


FEWER_THAN_A_BATCH = 101


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.db"


def begin(trace: Path) -> TraceWriter:
    return TraceWriter(begin_session(trace, SESSION), print)


def wait_for(
    trace: Path, query: str, wanted: int, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Wait until a query finds a number."""
    deadline = time.monotonic() + HANGS
    while (found := rows(trace, query)[0][0]) != wanted:
        assert time.monotonic() < deadline, f"{found}, not {wanted}"
        meanwhile()
        time.sleep(0.01)


def test_events_arrive_in_order_and_whole(trace: Path) -> None:
    writer = begin(trace)
    for time_ns in range(10_007):
        writer.record(EVENT._replace(time_ns=time_ns, path=b"\xff\n"))
        writer.flush_if_due()
    writer.blind_spot("io_uring", "qemu")
    writer.close(7)
    assert (writer.seen, writer.cleared, writer.lost, writer.trouble) == (10_007, 10_007, 0, "")
    assert rows(trace, "SELECT time_ns FROM event ORDER BY id") == [(n,) for n in range(10_007)]
    columns = ", ".join(OpenEvent._fields)
    last = rows(trace, f"SELECT {columns} FROM event ORDER BY id DESC LIMIT 1")[0]
    assert OpenEvent(*last) == EVENT._replace(time_ns=10_006, path=b"\xff\n")
    assert rows(trace, "SELECT exit_status, seen, lost FROM session") == [(7, 10_007, 0)]
    assert rows(trace, "SELECT * FROM blind_spot") == [(1, "io_uring", "qemu", 1)]
    assert os.listdir(trace.parent) == [trace.name], "one file is left"


def test_session_that_never_began_is_taken_back(trace: Path) -> None:
    begin(trace).close(7)
    begin(trace).close(None, began=False)
    assert rows(trace, "SELECT id FROM session") == [(1,)]


def test_file_made_for_a_session_that_never_began_goes_too(trace: Path) -> None:
    first = begin(trace)
    second = begin(trace)
    first.close(None, began=False)
    assert trace.exists(), "somebody else's session is in it"
    second.close(0)
    assert rows(trace, "SELECT id FROM session") == [(2,)]
    trace.unlink()
    begin(trace).close(None, began=False)
    assert os.listdir(trace.parent) == []


def test_still_refused_is_counted(trace: Path) -> None:
    writer = begin(trace)
    writer.record(EVENT._replace(fd=None, errno="EPERM"))
    writer.record(EVENT._replace(decision="kept"))
    writer.close(0)
    assert (writer.seen, writer.cleared, writer.still_refused) == (2, 1, 1)


def test_schema_has_a_column_for_every_field(trace: Path) -> None:
    begin_session(trace, SESSION)
    names = [row[1] for row in rows(trace, "PRAGMA table_info(event)")]
    assert names == ["id", "session_id", *OpenEvent._fields]


@pytest.mark.parametrize(
    ("version", "said"), [(schema.VERSION + 1, "a newer"), (schema.VERSION - 1, "an older")]
)
def test_other_schemas_are_refused(trace: Path, version: int, said: str) -> None:
    begin_session(trace, SESSION)
    with sqlite3.connect(trace) as database:
        database.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(FlagshimError, match=f"{said} flagshim"):
        begin_session(trace, SESSION)


def test_places_where_no_trace_can_be(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "trace.db", Path("/dev/null"), Path("/dev/full")):
        with pytest.raises(FlagshimError) as error:
            begin_session(path, SESSION)
        assert str(path) in error.value.message
        assert "-o" in error.value.hint


def test_empty_file_becomes_a_trace(trace: Path) -> None:
    trace.touch()
    begin(trace).close(0)
    assert rows(trace, "SELECT exit_status FROM session") == [(0,)]


def test_cut_off_trace_is_refused(trace: Path) -> None:
    begin(trace).close(0)
    trace.write_bytes(trace.read_bytes()[:2000])
    with pytest.raises(FlagshimError, match=r"trace .*malformed|not a"):
        begin_session(trace, SESSION)


def test_keeper_that_does_not_get_on_stops_nobody_and_loses_nothing(trace: Path) -> None:
    writer = begin(trace)
    writer.record(EVENT)
    assert writer.flush()
    (keeper,) = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    os.kill(keeper, signal.SIGSTOP)
    try:
        for time_ns in range(15_013):
            writer.record(EVENT._replace(time_ns=time_ns))
            writer.flush_if_due()
        assert not writer.flush()
    finally:
        os.kill(keeper, signal.SIGCONT)
    writer.close(0)
    assert (writer.seen, writer.lost) == (15_014, 0)
    assert rows(trace, "SELECT count(*) FROM event") == [(15_014,)]


def test_what_a_full_pipe_did_not_take_waits_for_no_further_event(trace: Path) -> None:
    writer = begin(trace)
    os.kill(writer.keeper_pid, signal.SIGSTOP)
    try:
        while writer.flush():
            for _ in range(FEWER_THAN_A_BATCH):
                writer.record(EVENT)
        assert not writer._events, "all of them are on their way"
    finally:
        os.kill(writer.keeper_pid, signal.SIGCONT)
    wait_for(trace, "SELECT count(*) FROM event", writer.seen, writer.flush_if_due)
    writer.close(0)


def test_trace_that_is_deleted_meanwhile(trace: Path) -> None:
    writer = begin(trace)
    writer.record(EVENT)
    writer.flush()
    wait_for(trace, "SELECT count(*) FROM event", 1)
    trace.unlink()
    writer.close(0)
    assert (writer.lost, writer.trouble) == (1, "it was deleted meanwhile")


def test_trace_that_is_deleted_at_once(trace: Path) -> None:
    writer = begin(trace)
    writer.record(EVENT)
    trace.unlink()
    writer.close(0)
    assert writer.lost == 1
    assert not trace.exists(), "no empty one is made in its place"
