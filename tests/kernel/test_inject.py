"""`flagshim attach --inject-filter`: quick, and for good."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.asked import Asked
from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.ways import status_of, tracer_of
from tests.processes import arguments, children, threads_of
from tests.support import REPOSITORY, flagshim_command, rows, wait_until

SERVED = "SELECT count(*) FROM event WHERE fd IS NOT NULL"


def inject(trace: Path, pid: int, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*flagshim_command(), "attach", "--inject-filter", "-o", str(trace), *options, str(pid)],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip


def test_served_for_good(run: Runner, asked: Asked, tmp_path: Path) -> None:
    trace = tmp_path / "t.db"
    assert asked.ask() == "Operation not permitted"
    result = inject(trace, asked.pid)
    assert result.returncode == 0, result.stderr
    helper = tracer_of(asked.pid)
    assert f"process {asked.pid} is served by process {helper} until it ends" in result.stderr
    assert [asked.ask() for _ in range(7)] == ["opened"] * 7
    assert asked.ask("fork") == "opened"
    assert status_of(asked.pid, "NoNewPrivs") == "1", "it is nobody's, without CAP_SYS_ADMIN"
    # What a supervisor has not yet handed on when it is killed is lost, and README says so.
    wait_until(lambda: rows(trace, SERVED) == [(8,)])
    os.kill(helper, signal.SIGKILL)
    wait_until(lambda: tracer_of(asked.pid) not in (0, helper))
    assert asked.ask() == "opened", "the guard serves on"
    asked.process.communicate(timeout=SECONDS)
    wait_until(lambda: rows(trace, "SELECT exit_status FROM session") == [(0,)])
    assert rows(trace, "SELECT engine FROM session") == [("ptrace injected",)]
    assert rows(trace, SERVED) == [(9,)]


def test_root_keeps_its_privileges(run: Runner, place: Place, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        try:
            assert inject(tmp_path / "t.db", sleeper.pid).returncode == 0
            assert status_of(sleeper.pid, "NoNewPrivs") == "0"
        finally:
            sleeper.kill()


def test_no_call_goes_wrong(build: Build, place: Place, tmp_path: Path) -> None:
    """Threads in the middle of calls of many kinds, one of which makes ours in between."""
    for number in range(7):
        trace = tmp_path / f"{number}.db"
        busy = subprocess.Popen(
            [build("busy"), str(place.file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, user=NOBODY,
        )  # fmt: skip
        try:
            wait_until(lambda busy=busy: threads_of(busy.pid) == 5)
            result = inject(trace, busy.pid)
            assert result.returncode == 0, result.stderr
            wait_until(lambda trace=trace: rows(trace, "SELECT count(*) > 97 FROM event")[0][0])
            assert threads_of(busy.pid) == 5
        finally:
            out, error = busy.communicate("x", timeout=SECONDS)
        assert (out, error) == ("calls many wrong 0\n", "")
        assert rows(trace, "SELECT count(*) FROM event WHERE errno IS NOT NULL") == [(0,)]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def refusal(trace: Path, pid: int, *options: str) -> str:
    result = inject(trace, pid, *options)
    assert result.returncode == 125
    assert len(result.stderr.splitlines()) == 1
    wait_until(lambda: tracer_of(pid) == 0)  # the helper may end after who started it
    assert not trace.exists()
    return result.stderr


def test_one_that_is_stopped(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: status_of(sleeper.pid, "State")[0] == "T")
    said = refusal(tmp_path / "t.db", sleeper.pid)
    assert f"it is stopped; let it run first: kill -CONT {sleeper.pid}" in said
    wait_until(lambda: status_of(sleeper.pid, "State")[0] == "T")  # as it is told to again


def test_one_with_a_filter(run: Runner, tmp_path: Path) -> None:
    command = run.command(["sleep", "100"], "--if-supervisor-dies", "continue", user=None)
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as supervisor:
        (pid,) = wait_until(
            lambda: [pid for pid in children(supervisor.pid) if arguments(pid)[:1] == ["sleep"]]
        )
        others = [child for child in children(supervisor.pid) if child != pid]
        for process in (*others, supervisor.pid):  # the guard first: it would take over
            os.kill(process, signal.SIGKILL)
        wait_until(lambda: tracer_of(pid) == 0)
        try:
            assert "has a seccomp filter of its own" in refusal(tmp_path / "t.db", pid)
        finally:
            os.kill(pid, signal.SIGKILL)


def test_not_for_a_while(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert "the filter stays" in refusal(tmp_path / "t.db", sleeper.pid, "--for", "3")


def test_32_bits(build: Build, place: Place, tmp_path: Path) -> None:
    program = build("busy", "-m32")
    with subprocess.Popen(
        [program, str(place.file)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as busy:
        try:
            assert "not a 64-bit program" in refusal(tmp_path / "t.db", busy.pid)
        finally:
            busy.communicate(b"x", timeout=SECONDS)
    assert busy.returncode == 0
