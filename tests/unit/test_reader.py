import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.trace import schema
from flagshim.trace.location import latest_trace, state_directory
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import BlindSpot, Tally
from tests.unit.tracebuilder import FAILED, KEPT, OPEN, SECOND, START, STILL_REFUSED, Trace, small


def read_all(path) -> None:
    with TraceReader(path) as reader:
        reader.sessions()
        reader.blind_spots()
        reader.by_session()
        list(reader.events())
        list(reader.by_path())


def refusal(path) -> str:
    """What a person is told about a file, however far the reader gets with it."""
    with pytest.raises(FlagshimError) as caught:
        read_all(path)
    return str(caught.value)


@contextmanager
def unprivileged():
    """Be a user whom permissions apply to."""
    if os.geteuid():
        yield
        return
    nobody = 65534
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(nobody)
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def public():
    """A folder that other users can get at, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
        os.chmod(folder, 0o755)


# --- what is in a trace -----------------------------------------------------------------


def test_sessions_come_back_as_written(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session(command='["a", "b c", "\\udcff\\u00e9"]', cwd=b"/\xff", exit_status=-9, seen=7)
    trace.session(started_ns=START + 1, ended_ns=None, exit_status=None)
    with TraceReader(trace.close()) as reader:
        first, second = reader.sessions()
    assert (first.id, first.engine, first.machine, first.uid) == (1, "ptrace", "x86_64", 1000)
    assert first.command == ("a", "b c", b"\xff\xc3\xa9")
    assert first.cwd == b"/\xff"
    assert first.rules == [{"name": "noatime", "clear": ["O_NOATIME"]}]
    assert (first.exit_status, first.seen) == (-9, 7)
    assert (second.ended_ns, second.exit_status) == (None, None)


def test_sessions_newest_in_order_of_time(tmp_path):
    trace = Trace(tmp_path / "t.db")
    for started in (30, 10, 20):
        trace.session(started_ns=started, ended_ns=started + 5)
    trace.session(started_ns=1, ended_ns=None)
    with TraceReader(trace.close()) as reader:
        assert [s.started_ns for s in reader.sessions()] == [1, 10, 20, 30]
        assert [s.started_ns for s in reader.sessions(limit=2)] == [20, 30]
        assert [s.started_ns for s in reader.sessions(since_ns=25)] == [1, 20, 30]


def test_events_come_back_as_written_and_in_order_of_time(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.session(machine="aarch64")
    late = trace.event(time_ns=START + 9, path=b"\xff\n", resolved=None, owner_uid=None)
    early = trace.event(session=2, time_ns=START + 1, program=b"\x80")
    middle = trace.event(time_ns=START + 5, **KEPT)
    with TraceReader(trace.close()) as reader:
        assert list(reader.events()) == [
            (2, "aarch64", early),
            (1, "x86_64", middle),
            (1, "x86_64", late),
        ]


def test_events_limit_keeps_the_newest_in_order_of_time(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.events(OPEN._replace(time_ns=START + n % 7, fd=n) for n in range(7))
    with TraceReader(trace.close()) as reader:
        assert [e.event.fd for e in reader.events(limit=3)] == [4, 5, 6]
        assert [e.event.fd for e in reader.events(since_ns=START + 5)] == [5, 6]
        assert [e.event.fd for e in reader.events(since_ns=START + 5, limit=1)] == [6]


def test_events_of_one_moment_stay_in_the_order_they_were_written(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.events(OPEN._replace(fd=fd) for fd in (5, 3, 4))
    with TraceReader(trace.close()) as reader:
        assert [e.event.fd for e in reader.events()] == [5, 3, 4]
        assert [e.event.fd for e in reader.events(limit=2)] == [3, 4]


def test_tallies_tell_kinds_of_failure_apart(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event()
    trace.event(time_ns=START + 1, **STILL_REFUSED)
    trace.event(time_ns=START + 2, fd=None, errno="ENOENT")  # cleared always, nothing there
    trace.event(time_ns=START + 3, **KEPT)
    trace.event(time_ns=START + 4, **{**FAILED, "errno": "EPERM"})  # refused, never cleared
    trace.event(time_ns=START + 5, **KEPT | {"fd": None})  # never returned
    with TraceReader(trace.close()) as reader:
        tally = Tally(6, 3, 1, 3, 2, START, START + 5)
        assert reader.by_session() == {1: tally}
        assert list(reader.by_program()) == [("qemu-system-x86_64", tally)]


def test_by_path_most_frequent_first_with_path_standing_in(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    names = [("x", "/b"), ("y", "/b"), ("/b", None), ("z", b"/\xff"), ("z", b"/\xff"), (None, None)]
    trace.events(OPEN._replace(path=path, resolved=resolved) for path, resolved in names)
    with TraceReader(trace.close()) as reader:
        assert [(n.name, n.tally.opens) for n in reader.by_path()] == [
            ("/b", 3),
            (b"/\xff", 2),
            (None, 1),
        ]
        assert [n.name for n in reader.by_path(limit=1)] == ["/b"]
        assert list(reader.by_path(since_ns=START + 1)) == []


def test_blind_spots(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.session()
    trace.blind_spot("io_uring", "qemu", 3)
    trace.blind_spot("setuid program", b"\xff", 5)
    trace.blind_spot("io_uring", "fio", 1, session=2)
    with TraceReader(trace.close()) as reader:
        assert reader.blind_spots() == {
            1: [BlindSpot("setuid program", b"\xff", 5), BlindSpot("io_uring", "qemu", 3)],
            2: [BlindSpot("io_uring", "fio", 1)],
        }


# --- where it is, and who else is at it -------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a?b#c%41&mode=rw.db", "new\nline.db", " ", "-", "é…\u202e.db", os.fsdecode(b"\xff\xfe.db")],
)
def test_any_file_name(tmp_path, name):
    with TraceReader(small(tmp_path / name)) as reader:
        assert len(list(reader.events())) == 4
    assert os.listdir(tmp_path) == [name]


def test_relative_path_double_slash_and_symbolic_link(tmp_path, monkeypatch):
    path = small(tmp_path / "t.db")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for spelling in ("link", "../t.db", f"//{path}"):
        with TraceReader(spelling) as reader:
            assert len(reader.sessions()) == 1


def test_one_moment_of_a_trace_that_is_being_written(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session(ended_ns=None)
    trace.event()
    with TraceReader(trace.path) as reader:
        trace.event()
        assert len(list(reader.events())) == 1
        trace.event()
        assert reader.by_session()[1].opens == 1
    with TraceReader(trace.path) as reader:
        assert len(list(reader.events())) == 3
    trace.close()


def test_one_moment_of_a_trace_without_wal_that_is_being_written(tmp_path):
    trace = Trace(tmp_path / "t.db", journal="DELETE")
    trace.db.execute("PRAGMA busy_timeout = 0")
    trace.session(ended_ns=None)
    trace.event()
    with TraceReader(trace.path) as reader:
        assert len(list(reader.events())) == 1
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            trace.session()
    trace.event()
    with TraceReader(trace.path) as reader:
        assert len(list(reader.events())) == 2
    trace.close()


def test_writer_in_another_process(tmp_path):
    code = (
        "import sys; from tests.unit.tracebuilder import Trace\n"
        "trace = Trace(sys.argv[1]); trace.session(ended_ns=None)\n"
        "trace.event(); print('ready', flush=True)\n"
        "while sys.stdin.readline(): trace.event(); print('more', flush=True)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "t.db"],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        for count in range(1, 14):
            assert writer.stdout.readline()
            with TraceReader(tmp_path / "t.db") as reader:
                assert len(list(reader.events())) == count
                writer.stdin.write("\n")
                writer.stdin.flush()
        assert writer.stdout.readline()
        writer.stdin.close()
        assert writer.wait() == 0
    with TraceReader(tmp_path / "t.db") as reader:
        assert reader.by_session()[1].opens == 14


def test_reader_does_not_own_a_trace_that_is_being_written(public):
    trace = Trace(public / "t.db")
    trace.session(ended_ns=None)
    trace.event()
    with unprivileged(), TraceReader(trace.path) as reader:
        assert len(list(reader.events())) == 1
    trace.event()
    trace.close()
    assert os.listdir(public) == ["t.db"]


def test_reader_leaves_nothing_behind_where_it_could(tmp_path):
    path = small(tmp_path / "t.db")
    assert path.read_bytes()[18:20] == b"\2\2"  # WAL: SQLite would
    with TraceReader(path) as reader:
        assert len(list(reader.events())) == 4
        assert os.listdir(tmp_path) == ["t.db"]
    assert os.listdir(tmp_path) == ["t.db"]


def test_folder_that_cannot_be_written_to(public):
    small(public / "t.db")
    os.chmod(public, 0o555)
    with unprivileged(), TraceReader(public / "t.db") as reader:
        assert len(list(reader.events())) == 4


def killed(source: Path, target: Path) -> Path:
    """Copy what a killed writer leaves: the newest events only in the -wal file."""
    trace = Trace(source / "live.db")
    trace.db.execute("PRAGMA wal_autocheckpoint = 0")
    trace.session(ended_ns=None)
    trace.event()
    for suffix in ("", "-wal"):
        shutil.copy(f"{trace.path}{suffix}", f"{target / 'killed.db'}{suffix}")
    trace.close()
    return target / "killed.db"


def test_writer_was_killed(tmp_path, public):
    path = killed(tmp_path, public)
    before = {file: file.read_bytes() for file in public.iterdir()}
    for _ in range(2):
        with TraceReader(path) as reader:
            assert len(list(reader.events())) == 1
    assert {file: file.read_bytes() for file in before} == before


def test_writer_was_killed_and_the_folder_cannot_be_written_to(tmp_path, public):
    path = killed(tmp_path, public)
    os.chmod(public, 0o555)
    with unprivileged():
        text = refusal(path)
    assert "SQLite cannot open it; copy it, with the files of that name and -wal" in text


def test_trace_at_rest_that_comes_to_life_while_read(tmp_path):
    path = small(tmp_path / "t.db")
    os.utime(path, ns=(0, 1))  # a filesystem's clock may not tick between the two
    with TraceReader(path) as reader:
        assert len(list(reader.events())) == 4
        writer = sqlite3.connect(path)
        writer.execute("DELETE FROM event")
        writer.commit()
        writer.close()
        with pytest.raises(FlagshimError, match="changed while it was read"):
            list(reader.events())


def test_trace_deleted_while_read(tmp_path):
    path = small(tmp_path / "t.db")
    with TraceReader(path) as reader:
        path.unlink()
        assert len(list(reader.events())) == 4


def test_reader_keeps_the_locks_of_a_writer_in_the_same_process(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # -wal is there, but empty
    with TraceReader(trace.path) as reader:
        reader.sessions()
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA journal_mode=DELETE')"
    other = subprocess.run(
        [sys.executable, "-c", code, trace.path], capture_output=True, text=True, check=False
    )
    assert "database is locked" in other.stderr  # it is not the only one who has it open
    trace.close()


def test_closed_in_the_end_even_if_refused(tmp_path):
    before = os.listdir("/proc/self/fd")
    (tmp_path / "zeros").write_bytes(bytes(8192))
    for _ in range(3):
        refusal(tmp_path / "zeros")
    with TraceReader(small(tmp_path / "t.db")):
        pass
    assert os.listdir("/proc/self/fd") == before


# --- what is no trace -------------------------------------------------------------------


def test_missing_directory_and_the_like(tmp_path):
    assert "none.db: no such file; name a file" in refusal(tmp_path / "none.db")
    assert f"{tmp_path}: a directory; name a trace in it" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "fifo: not a regular file" in refusal(tmp_path / "fifo")
    assert "not a regular file" in refusal("/dev/null")
    (tmp_path / "file").touch()
    assert "no such file" in refusal(tmp_path / "file" / "t.db")
    assert "File name too long" in refusal("x" * 300)


def test_other_files(tmp_path):
    path = tmp_path / "f"
    path.touch()
    assert f"{path}: empty" in refusal(path)
    for content in (bytes(8192), b"hello, world\n" * 997, b"SQLite format 3\0"):
        path.write_bytes(content)
        assert f"{path}: not an SQLite database" in refusal(path)


def test_other_database(tmp_path):
    with sqlite3.connect(tmp_path / "f") as db:
        db.execute("CREATE TABLE event (id)")
    db.close()
    assert "an SQLite database, but no trace" in refusal(tmp_path / "f")


def test_newer_schema(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    text = refusal(trace.close())
    assert f"written by a newer flagshim (layout {schema.VERSION + 1}" in text
    assert text.endswith("; upgrade flagshim")


def test_permission_denied(public):
    path = small(public / "t.db")
    os.chmod(path, 0o200)
    with unprivileged():
        assert f"{path}: permission denied; read it as its owner" in refusal(path)
    os.chmod(path, 0o644)
    (public / "folder").mkdir(mode=0o700)
    with unprivileged():
        if os.getuid():
            os.chmod(public / "folder", 0)
        assert "permission denied" in refusal(public / "folder" / "t.db")
    os.chmod(public / "folder", 0o700)


def test_permission_denied_while_being_written(public):
    trace = Trace(public / "t.db")
    os.chmod(public / "t.db", 0o200)
    with unprivileged():
        assert "permission denied" in refusal(trace.path)
    trace.close()


def large(path: Path) -> Path:
    trace = Trace(path)
    trace.session()
    trace.events(
        OPEN._replace(time_ns=START + n, resolved=f"/store/{n % 211}/{'x' * (n % 97)}")
        for n in range(4001)
    )
    return trace.close()


def test_cut_short(tmp_path):
    path = large(tmp_path / "t.db")
    content = path.read_bytes()
    for size in (19, 100, 4096, len(content) // 2, len(content) - 4096):
        path.write_bytes(content[:size])
        assert any(word in refusal(path) for word in ("damaged", "not an SQLite")), size


def test_cut_short_while_read(tmp_path):
    path = large(tmp_path / "t.db")
    with TraceReader(path) as reader:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(FlagshimError):
            list(reader.events())


def test_damage_found_in_the_middle_of_an_iteration(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event()
    trace.event(session=2, time_ns=START + SECOND)
    trace.close()
    with TraceReader(trace.path) as reader:
        events = reader.events()
        assert next(events).session_id == 1
        with pytest.raises(FlagshimError, match="damaged: an event belongs to no session"):
            next(events)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE session SET command = 'x'",
        "UPDATE session SET command = '\"x\"'",
        "UPDATE session SET command = '[1]'",
        """UPDATE session SET command = '["\\ud800"]'""",
        "UPDATE session SET rules = '{}'",
        "UPDATE session SET host = x'ff'",
        "UPDATE event SET time_ns = 'now'",
        "UPDATE event SET time_ns = 1e300",
        "UPDATE event SET program = 1",
        "UPDATE event SET path = CAST(x'ff' AS TEXT)",
        "UPDATE blind_spot SET count = 'many'",
        "DROP TABLE event",
        "ALTER TABLE event DROP COLUMN tries",
    ],
)
def test_what_flagshim_never_writes_is_damage(tmp_path, change):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event()
    trace.blind_spot("io_uring", "x", 1)
    trace.db.execute(change)
    assert ": damaged: " in refusal(trace.close())


def test_random_damage_ends_in_no_other_error(tmp_path):
    content = large(tmp_path / "t.db").read_bytes()
    path = tmp_path / "d.db"
    refused = 0
    for seed in range(47):
        dice = random.Random(seed)
        damaged = bytearray(content)
        for _ in range(1 + dice.randrange(100)):
            start = dice.randrange(len(damaged))
            damaged[start : start + 3] = dice.randbytes(3)
        path.write_bytes(damaged)
        try:
            read_all(path)
        except FlagshimError:
            refused += 1
    assert refused


# --- where traces are kept --------------------------------------------------------------


def test_state_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert state_directory() == Path("/home/u/.local/state/flagshim")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_directory() == Path("/home/u/.local/state/flagshim")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_directory() == Path("/state/flagshim")


def test_latest_trace(tmp_path):
    for number, name in enumerate(["b.db", "c.db", "a.db", "note.txt"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(0, number))
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "dangling.db").symlink_to("nowhere")
    assert latest_trace(tmp_path) == tmp_path / "a.db"
    (tmp_path / "b.db-wal").touch()  # being written: the trace itself looks old
    assert latest_trace(tmp_path) == tmp_path / "b.db"


def test_no_trace_yet(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FlagshimError) as caught:
            latest_trace(folder)
        assert str(folder) in str(caught.value)
        assert "run `flagshim run -- CMD` first or name a TRACE" in str(caught.value)


def test_folder_of_traces_that_cannot_be_listed(public):
    (public / "state").mkdir()
    os.chmod(public / "state", 0)
    with unprivileged(), pytest.raises(FlagshimError, match="cannot be listed: Permission denied"):
        latest_trace(public / "state")
    os.chmod(public / "state", stat.S_IRWXU)
