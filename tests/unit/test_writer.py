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
from flagshim.trace.bounds import Bound
from flagshim.trace.events import OpenEvent
from flagshim.trace.store import Batch, TraceFile, begin_session
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


@pytest.mark.parametrize("keep", [None, 3])
@pytest.mark.parametrize("told", [True, False])
def test_what_a_killed_writer_has_not_written_is_lost(
    trace: Path, keep: int | None, told: bool
) -> None:
    """Whether or not it has told how many it has seen."""
    session = begin_session(trace, SESSION)
    file = TraceFile(trace)
    file.append(session.id, Batch([EVENT] * 5, 13 if told else 5, 1, (), ()))
    file.close()
    writer = TraceWriter(session, print, Bound(events=keep))
    for _ in range(7):
        writer.record(EVENT)
    writer.lose(2, "of something else")
    writer.close(0, calls=23)
    there = 3 if keep else 12
    assert rows(trace, "SELECT count(*) FROM event") == [(there,)]
    assert rows(trace, "SELECT coalesce(sum(opens), 0) FROM dropped") == [(12 - there,)]
    assert rows(trace, "SELECT seen, lost FROM session") == [(23, 11)]


@pytest.mark.parametrize("keep", [None, 3])
def test_writer_that_is_still_behind_at_the_end(trace: Path, keep: int | None) -> None:
    """What it writes then is lost no more."""
    session = begin_session(trace, SESSION)
    writer = TraceWriter(session, print, Bound(events=keep))
    writer.record(EVENT)
    writer.close(0, calls=13)
    assert counts(trace) == (13, 12, 1)
    file = TraceFile(trace)
    file.append(session.id, Batch([EVENT] * 5, 7, 2))
    assert counts(trace) == (13, 7, 6)
    file.append(session.id, Batch(troubles=[(1, "the supervisor was killed")]))
    assert counts(trace) == (13, 7, 6)
    file.close()


def test_writer_that_is_behind_where_nobody_knows_how_many_there_are(trace: Path) -> None:
    session = begin_session(trace, SESSION)
    writer = TraceWriter(session, print)
    writer.record(EVENT)
    writer.close(0)
    file = TraceFile(trace)
    file.append(session.id, Batch([EVENT] * 5, 5))
    file.close()
    assert counts(trace) == (6, 0, 6)


def counts(trace: Path) -> tuple[int, int, int]:
    """Return how many calls were seen, how many of them are lost, and how many are there."""
    ((seen, lost),) = rows(trace, "SELECT seen, lost FROM session")
    ((events,),) = rows(trace, "SELECT count(*) FROM event")
    ((dropped,),) = rows(trace, "SELECT coalesce(sum(opens), 0) FROM dropped")
    return seen, lost, events + dropped


@pytest.mark.parametrize("keep", [None, 3])
@pytest.mark.parametrize(("calls", "seen"), [(None, 13), (23, 23)])
def test_keeper_killed_that_was_not_the_first(
    trace: Path, keep: int | None, calls: int | None, seen: int
) -> None:
    """What is there of any writer counts, not what this one has seen."""
    session = begin_session(trace, SESSION)
    file = TraceFile(trace)
    file.append(session.id, Batch([EVENT] * 5, 6, 1))
    file.close()
    writer = TraceWriter(session, print, Bound(events=keep))
    for _ in range(7):
        writer.record(EVENT)
    writer.flush()
    wait_for(trace, "SELECT seen FROM session", 13)
    os.kill(writer.keeper_pid, signal.SIGKILL)
    writer.record(EVENT)
    writer.close(7, calls=calls)
    assert counts(trace) == (seen, seen - 12, 12)
    assert writer.lost == seen - 12
    assert rows(trace, "SELECT exit_status FROM session") == [(7,)]
    ((trouble,),) = rows(trace, "SELECT text FROM trouble")
    assert trouble == writer.trouble == "the process that writes it was killed"


def test_keeper_killed_that_was_the_only_one(trace: Path) -> None:
    writer = begin(trace)
    for _ in range(5):
        writer.record(EVENT)
    writer.flush()
    wait_for(trace, "SELECT seen FROM session", 5)
    os.kill(writer.keeper_pid, signal.SIGKILL)
    for _ in range(7):
        writer.record(EVENT)
    writer.lose(2, "of something else")
    writer.close(0)
    assert counts(trace) == (14, 9, 5)


@pytest.mark.parametrize(("calls", "seen"), [(None, 13), (23, 23)])
def test_keeper_that_there_cannot_be(
    trace: Path, monkeypatch: pytest.MonkeyPatch, calls: int | None, seen: int
) -> None:
    def no_process() -> int:
        raise BlockingIOError

    session = begin_session(trace, SESSION)
    file = TraceFile(trace)
    file.append(session.id, Batch([EVENT] * 5, 6, 1))
    file.close()
    monkeypatch.setattr(os, "fork", no_process)
    writer = TraceWriter(session, print, without=True)
    for _ in range(7):
        writer.record(EVENT)
        writer.flush()
    writer.close(0, calls=calls)
    assert counts(trace) == (seen, seen - 5, 5)
    ((trouble,),) = rows(trace, "SELECT text FROM trouble")
    assert trouble == writer.trouble == "no process could be started that writes it"


def test_writer_killed_between_messages(trace: Path) -> None:
    """What it had no time to hand on was not counted either."""
    session = begin_session(trace, SESSION)
    pid = os.fork()
    if pid == 0:
        try:
            writer = TraceWriter(session, print)
            os.kill(writer.keeper_pid, signal.SIGSTOP)  # and so the pipe fills up
            while writer.flush():
                for _ in range(2_003):
                    writer.record(EVENT)
            os.kill(writer.keeper_pid, signal.SIGCONT)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    ended = "SELECT count(*) FROM trouble WHERE text = 'the supervisor was killed'"
    wait_for(trace, ended, 1)
    seen, lost, there = counts(trace)
    assert there > 0
    assert (seen, lost) == (there, 0)


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
    os.kill(writer.keeper_pid, signal.SIGSTOP)
    try:
        for time_ns in range(15_013):
            writer.record(EVENT._replace(time_ns=time_ns))
            writer.flush_if_due()
        assert not writer.flush()
    finally:
        os.kill(writer.keeper_pid, signal.SIGCONT)
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
