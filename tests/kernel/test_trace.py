"""The trace: complete, readable meanwhile, and never in the way of an open."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from tests.kernel.conftest import SECONDS, Build, Place, Runner
from tests.processes import children, program
from tests.support import REPOSITORY, rows


def test_every_open_once(build: Build, run: Runner, place: Place) -> None:
    """8 processes of 4 threads, 100,003 opens: none lost, none doubled, none starved."""
    shim = run.supervised([build("storm"), "8", "4", "100003", str(place.file)])
    assert shim.status == 0, "an open failed"
    assert "100003 of 100003 opens rewritten" in shim.err
    assert shim.events("count(*), count(DISTINCT pid), count(DISTINCT tid)") == [(100003, 8, 32)]
    assert shim.events("count(*)", "decision <> 'cleared' OR errno IS NOT NULL") == [(0,)]
    each = rows(shim.trace, "SELECT count(*) FROM event GROUP BY tid")
    assert sorted({count for (count,) in each}) == [3125, 3126]
    # Fair: when the first thread is done with its share, nobody is far behind the others.
    ends = rows(shim.trace, "SELECT max(time_ns) FROM event GROUP BY tid")
    done = rows(
        shim.trace, f"SELECT count(*) FROM event WHERE time_ns < {min(ends)[0]} GROUP BY tid"
    )
    assert len(done) == 32
    assert min(done)[0] > median(count for (count,) in done) / 2


def test_readable_while_it_runs(build: Build, run: Runner, place: Place) -> None:
    argv = run.command([build("storm"), "0", "1", "10000019", str(place.file)])
    process = subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        counts = [0]
        deadline = time.monotonic() + SECONDS
        while len(counts) < 5:
            assert time.monotonic() < deadline
            with contextlib.suppress(sqlite3.OperationalError):
                count = rows(run.trace, "SELECT count(*) FROM event")[0][0]
                if count > counts[-1]:
                    counts.append(count)
    finally:
        process.terminate()
        assert process.wait(timeout=SECONDS) == -signal.SIGTERM
    assert rows(run.trace, "SELECT exit_status FROM session") == [(-signal.SIGTERM,)]
    assert [path.name for path in run.trace.parent.iterdir()] == [run.trace.name]


def test_sessions_add_up(run: Runner, place: Place) -> None:
    dd = ["dd", "iflag=noatime", f"if={place.file}", "of=/dev/null"]
    first = run.supervised(dd)
    for _ in range(2):
        command = run.command(dd)
        command[command.index("-o") + 1] = str(first.trace)
        subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True)
    assert first.events("session_id, count(*)", "1 GROUP BY session_id") == [(1, 1), (2, 1), (3, 1)]


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"not a trace\n", "not a flagshim trace"), ("database", "not a flagshim trace")],
)
def test_other_files_are_refused_and_left_alone(
    run: Runner, tmp_path: Path, content: bytes | str, cause: str
) -> None:
    file = tmp_path / "other"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE mine (x)")
    before = file.read_bytes()
    command = run.command(["touch", str(tmp_path / "ran")], user=None)
    command[command.index("-o") + 1] = str(file)
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert result.returncode == 125
    assert cause in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert file.read_bytes() == before
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [b"new\nline", b"\x1b[31mred", b"not\xffutf8", "bidi\u202e".encode(), b"quo'te\"", b" s "],
)
def test_names_are_kept_exactly_and_printed_safely(run: Runner, place: Place, name: bytes) -> None:
    path = os.fsencode(place.path) + b"/" + name
    with open(path, "w") as file:
        file.write("x")
    shim = run.supervised(["dd", "iflag=noatime", os.fsdecode(b"if=" + path), "of=/dev/null"])
    ((asked, resolved),) = shim.events("path, resolved")
    for stored in (asked, resolved):
        assert (stored.encode() if isinstance(stored, str) else stored) == path
    table = subprocess.run(
        [*run.command([])[:3], "report", "--view", "events", str(shim.trace)],
        capture_output=True, check=True, cwd=REPOSITORY,
    ).stdout  # fmt: skip
    assert table.decode().replace("\n", "").isprintable()


def test_locked_file_holds_up_nobody(build: Build, run: Runner, place: Place) -> None:
    """Opens go on while somebody keeps the trace locked, and it has all of them afterwards."""
    dd = f"dd iflag=noatime if={place.file} of=/dev/null 2>/dev/null"
    seven = f"for i in 1 2 3 4 5 6 7; do {dd} || exit 1; done"
    script = f"{dd}; echo one; read go; {seven}; echo two; read go"
    argv = run.command(["sh", "-c", script])
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"one\n"
    lock = sqlite3.connect(run.trace, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"two\n", "the program was held up"
    assert b"locked; CMD goes on" in process.stderr.readline()
    lock.execute("ROLLBACK")
    lock.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert b"8 of 8 opens rewritten; see" in process.stderr.read()
    assert process.wait(timeout=SECONDS) == 0
    assert rows(run.trace, "SELECT count(*) FROM event") == [(8,)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "flagshim-test", disk], check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs")
    (disk / "ballast").write_bytes(bytes(65536))
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk_costs_the_trace_only(
    build: Build, run: Runner, place: Place, small_disk: Path
) -> None:
    command = run.command([build("storm"), "0", "1", "20011", str(place.file)])
    trace = small_disk / "trace.db"
    command[command.index("-o") + 1] = str(trace)
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS
    )
    assert result.returncode == 0, "an open failed"
    first, last = result.stderr.splitlines()
    assert "full; CMD goes on" in first
    assert "20011 of 20011 opens rewritten" in last
    (small_disk / "ballast").unlink()  # SQLite needs a little room to read, too
    lost = int(last.split(" not in the trace")[0].rsplit(" ", 1)[1])
    stored = rows(trace, "SELECT count(*) FROM event")[0][0]
    assert 0 < lost == 20011 - stored


def test_killed_keeper(build: Build, run: Runner, place: Place) -> None:
    """Without the process that writes there is no trace, and every open all the same."""
    storm = [build("storm"), "0", "1", "20011", str(place.file)]
    argv = run.command(["sh", "-c", 'echo up; read go; exec "$@"', "sh", *storm])
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    (keeper,) = (
        pid for pid in children(process.pid)
        if program(pid) == os.path.realpath(sys.executable)
    )  # fmt: skip
    os.kill(keeper, signal.SIGKILL)
    last = process.communicate("\n", timeout=SECONDS)[1].splitlines()[-1]
    assert process.returncode == 0
    assert "20011 of 20011 opens rewritten, 20011 not in the trace" in last
    assert "was killed" in last
