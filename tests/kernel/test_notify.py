"""The notify engine: supervisors that die, a guard that dies, debuggers, filesystems that wait."""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flagshim.probes import reason_notify_unavailable
from tests.kernel.conftest import SECONDS, Build, Place, Runner
from tests.kernel.storms import Storm
from tests.kernel.ways import children, wait_until
from tests.support import REPOSITORY, require, rows

KILLS, OPENS = 101, 100_003


@pytest.fixture(autouse=True)
def can_listen() -> None:
    require("notify", reason_notify_unavailable())


@pytest.fixture
def start(run: Runner, build: Build, place: Place) -> Iterator[Callable[..., Storm]]:
    storms: list[Storm] = []

    def start_(mode: str, opens: int) -> Storm:
        storm = Storm(run, build("endure"), place, mode, "--engine", "notify", opens=opens)
        storms.append(storm)
        wait_until(storm.supervisors)
        return storm

    yield start_
    for storm in storms:
        storm.end()


@pytest.mark.parametrize("mode", ["run", "exec"])
def test_supervisor_killed_again_and_again(start: Callable[..., Storm], mode: str) -> None:
    """No open fails, none hangs, each is in the trace once; one line says that it happened."""
    opens = OPENS if mode == "run" else OPENS // 7
    storm = start(mode, opens)
    for kill in range(KILLS):
        wait_until(lambda kill=kill: len(storm.times()) > opens * (kill + 1) // (KILLS + 2))
        wait_until(storm.supervisors)
        os.kill(random.choice(storm.supervisors()), signal.SIGKILL)
    _, err = storm.process.communicate(timeout=SECONDS)
    assert storm.process.returncode == 7, err
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    times = storm.times()
    assert len(times) == opens
    assert min(times) > 0, "none failed"
    assert rows(storm.trace, "SELECT seen, lost, exit_status FROM session") == [(opens, 0, 7)]
    assert rows(storm.trace, "SELECT decision, count(*) FROM event GROUP BY 1") == [
        ("cleared", opens)
    ]
    assert rows(storm.trace, "PRAGMA integrity_check") == [("ok",)]
    assert rows(storm.trace, "SELECT kind FROM blind_spot") == []
    deaths = rows(
        storm.trace, "SELECT count(*) FROM trouble WHERE text LIKE 'supervisor % killed%'"
    )
    assert deaths == [(KILLS,)]
    if mode == "run":
        assert err.count(b"was killed by signal 9; ") == 1


def test_run_is_asked_to_end_after_its_command(run: Runner, place: Place) -> None:
    """What the command left running goes on, is served, and nobody speaks of a guard that died."""
    gate, said = place.path / "gate", place.path / "said"
    os.mkfifo(gate)
    gate.chmod(0o666)
    said.touch()
    said.chmod(0o666)
    read = f"dd iflag=noatime if={place.file} of={said} status=none"
    left = f"echo started >{said}; read go <{gate}; {read}"
    argv = ["sh", "-c", f"( {left} ) >/dev/null 2>&1 </dev/null & exit 3"]
    command = run.command(argv, "--engine", "notify")
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    go = os.open(gate, os.O_RDWR)  # does not wait for a reader
    try:
        wait_until(lambda: said.read_text() == "started\n")
        wait_until(lambda: not any(map(is_a_shell, children(process.pid))))
        process.terminate()
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 3
    finally:
        process.kill()
        os.write(go, b"go\n")
    wait_until(lambda: said.read_text() == "content\n")
    os.close(go)
    wait_until(lambda: rows(run.trace, "SELECT count(*) FROM event") == [(1,)])
    assert rows(run.trace, "SELECT program, decision, errno FROM event") == [
        ("dd", "cleared", None)
    ]
    assert "guard" not in err
    ((text,),) = rows(run.trace, "SELECT text FROM trouble")
    assert text.startswith("run was asked to end; ")


def is_a_shell(pid: int) -> bool:
    """Tell whether a process is, or was, a shell."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "sh\n"
    except OSError:
        return False
