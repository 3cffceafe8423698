import sqlite3
import subprocess
import threading
from itertools import chain
from pathlib import Path

from flagshim.trace.reader import TraceReader
from tests.support import REPOSITORY, flagshim_command, rows
from tests.unit.tracebuilder import START, Trace, small

BAD = b"\xff\xfe"


def merge(target: Path, *sources: Path) -> subprocess.CompletedProcess[str]:
    command = [*flagshim_command(), "merge", "-o", target, *sources]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def content(trace: Path) -> dict[str, list[tuple]]:
    """Everything in a trace, but for the numbers of its rows."""
    sessions = {row[0]: row[1:3] for row in rows(trace, "SELECT id, started_ns, host FROM session")}
    found = {
        "session": sorted(map(repr, (row[1:] for row in rows(trace, "SELECT * FROM session"))))
    }
    for (table,) in rows(trace, "SELECT name FROM sqlite_master WHERE type = 'table'"):
        if table in ("session", "sqlite_sequence"):
            continue
        columns = [c[1] for c in rows(trace, f"PRAGMA table_info({table})") if c[1] != "id"]
        assert columns[0] == "session_id", f"{table} is to be merged, too"
        found[table] = sorted(
            repr((sessions[row[0]], *row[1:]))
            for row in rows(trace, f"SELECT {', '.join(columns)} FROM {table}")
        )
    return found


def fill(trace: Trace) -> None:
    """Put a row into each table that has none, so that a new one is not forgotten."""
    for (table,) in trace.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
        if table != "session" and not trace.db.execute(f"SELECT * FROM {table}").fetchone():
            info = trace.db.execute(f"PRAGMA table_info({table})").fetchall()
            values = [1 if c[1] == "session_id" else 7 if c[2] == "INTEGER" else "x" for c in info]
            trace.db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(info))})", values)


def machine(folder: Path, host: str) -> Path:
    trace = Trace(folder / f"{host}.db")
    trace.session(host=host, cwd=BAD, seen=3)
    trace.event()
    trace.event(program=BAD, path=BAD, resolved=None, time_ns=START + 2)
    trace.session(host=host, started_ns=START + 11, seen=1)
    trace.event(session=2, fsuid=None, owner_uid=None)
    trace.blind_spot("io_uring", BAD, 3)
    trace.db.execute("INSERT INTO label VALUES (1, 'cicd.pipeline.name', 'nightly')")
    fill(trace)
    return trace.close()


def test_all_of_each(tmp_path: Path) -> None:
    sources = [machine(tmp_path, host) for host in ("alpha", "beta", "gamma")]
    result = merge(tmp_path / "all.db", *sources)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("flagshim: 6 sessions added; see: flagshim report ")
    merged = content(tmp_path / "all.db")
    parts = [content(source) for source in sources]
    assert merged == {table: sorted(chain(*(p[table] for p in parts))) for table in parts[0]}
    assert all(merged.values())
    with TraceReader(tmp_path / "all.db") as reader:
        assert len(reader.sessions()) == 6
        assert len(list(reader.events())) == 9
        assert [set(labels) for labels in reader.labels().values()] == [{"cicd.pipeline.name"}] * 3


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    source = machine(tmp_path, "alpha")
    merge(tmp_path / "all.db", source)
    before = (tmp_path / "all.db").read_bytes()
    result = merge(tmp_path / "all.db", source, source)
    assert "0 sessions added, 4 there before" in result.stderr
    assert (tmp_path / "all.db").read_bytes()[100:] == before[100:]  # the header has a counter


def test_a_session_that_ran_is_brought_up_to_date(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "a.db")
    trace.session(ended_ns=None, exit_status=None, seen=1)
    trace.event()
    trace.blind_spot("io_uring", "qemu", 1)
    merge(tmp_path / "all.db", tmp_path / "a.db")
    old = tmp_path / "old.db"
    old.write_bytes((tmp_path / "all.db").read_bytes())
    trace.event(time_ns=START + 1)
    trace.db.execute("UPDATE session SET ended_ns = 7, exit_status = 0, seen = 2")
    trace.db.execute("UPDATE blind_spot SET count = 2")
    trace.close()
    result = merge(tmp_path / "all.db", tmp_path / "a.db", old)
    assert "0 sessions added, 1 brought up to date, 1 there before" in result.stderr
    assert content(tmp_path / "all.db") == content(tmp_path / "a.db")


def test_what_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    good = small(tmp_path / "good.db")
    text = tmp_path / "text.db"
    text.write_text("hello")
    newer = Trace(tmp_path / "newer.db")
    newer.session()
    newer.db.execute("ALTER TABLE event ADD COLUMN colour")
    newer.close()
    orphan = Trace(tmp_path / "orphan.db")
    orphan.session(host="orphan")
    orphan.event(session=7)
    orphan.close()
    mistyped = Trace(tmp_path / "mistyped.db")
    mistyped.session(host="mistyped")
    mistyped.event(tid="x")
    mistyped.close()
    invalid = Trace(tmp_path / "invalid.db")
    invalid.session(host="invalid")
    invalid.event()
    invalid.db.execute("UPDATE event SET path = CAST(x'ff' AS TEXT)")
    invalid.close()
    bad = [text, newer.path, orphan.path, mistyped.path, invalid.path, tmp_path / "none.db"]
    result = merge(tmp_path / "all.db", *bad, good, tmp_path / "all.db")
    assert result.returncode == 125
    lines = result.stderr.splitlines()
    assert len(lines) == 8
    for path, why, line in zip(
        [*bad, tmp_path / "all.db"],
        ["not an SQLite", "newer flagshim", "belongs to no session", "wrong type", "decode",
         "no such file", "is what to merge into"],
        lines, strict=False,
    ):  # fmt: skip
        assert str(path) in line
        assert why in line
        assert line.endswith("; left out")
    assert "1 session added, 7 of 8 traces left out" in lines[-1]
    assert content(tmp_path / "all.db") == content(good)


def test_a_trace_of_before_there_were_labels(tmp_path: Path) -> None:
    source = small(tmp_path / "a.db")
    connection = sqlite3.connect(source)
    connection.execute("DROP TABLE label")
    connection.close()
    assert merge(tmp_path / "all.db", source).returncode == 0
    with TraceReader(source) as reader:
        assert reader.labels() == {}


def test_two_merging_into_one(tmp_path: Path) -> None:
    sources = [machine(tmp_path, f"host{n}") for n in range(5)]
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [
        threading.Thread(target=lambda s=s: results.append(merge(tmp_path / "all.db", s)))
        for s in sources
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.returncode for result in results] == [0] * 5, [r.stderr for r in results]
    assert rows(tmp_path / "all.db", "SELECT count(*) FROM session") == [(10,)]


def test_a_target_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    result = merge(tmp_path / "text", small(tmp_path / "a.db"))
    assert (result.returncode, (tmp_path / "text").read_text()) == (125, "hello")
    assert "not a flagshim trace" in result.stderr
    assert merge(Path("/proc/x.db"), tmp_path / "a.db").returncode == 125
