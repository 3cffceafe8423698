"""`flagshim exec`: CMD is the process that was started, and the supervisor is nowhere near."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.ways import as_exec, ended_trace
from tests.processes import program
from tests.support import REPOSITORY, require, rows

IDENTITY = (
    "import os, signal; print(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0));"
    "print(open(f'/proc/self/task/{os.getpid()}/children').read().split(),"
    "signal.sigpending(), sorted(os.listdir('/proc/self/fd')), os.getcwd())"
)


def test_it_is_the_process_that_was_started(run: Runner) -> None:
    probe = ["/usr/bin/python3", "-c", IDENTITY]

    def identity(argv: list[str]) -> str:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        out = process.communicate(timeout=SECONDS)[0]
        return re.sub(rf"\b{process.pid}\b", "PID", out)

    natively = identity(probe)
    assert natively.startswith("PID ")
    assert identity(as_exec(run, probe, user=None)) == natively


@pytest.mark.parametrize("end", ["exit 0", "exit 7", "kill -TERM $$", "kill -KILL $$"])
def test_exit_status_is_its_own(run: Runner, end: str) -> None:
    natively = subprocess.run(["sh", "-c", end], check=False).returncode
    command = as_exec(run, ["sh", "-c", end], user=None)
    result = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True)
    assert (result.returncode, result.stderr) == (natively, b"")
    assert ended_trace(run).session("exit_status") == (natively,)


def test_opens_are_served(build: Build, run: Runner, place: Place) -> None:
    command = as_exec(run, [build("storm"), "2", "3", "10007", str(place.file)])
    assert subprocess.run(command, check=False, cwd=REPOSITORY).returncode == 0
    shim = ended_trace(run)
    assert shim.events("count(*)", "decision = 'cleared' AND errno IS NULL") == [(10007,)]


def test_daemon_is_followed(run: Runner, place: Place) -> None:
    """The first process ends, its caller goes on at once, and the daemon is served still."""
    gate = place.path / "gate"
    os.mkfifo(gate, 0o666)
    gate.chmod(0o666)
    daemon = f"read go <{gate}; dd iflag=noatime if={place.file} of=/dev/null"
    script = f"( {daemon} ) >/dev/null 2>&1 </dev/null & echo started"
    result = subprocess.run(
        as_exec(run, ["sh", "-c", script]), capture_output=True, text=True, check=False,
        cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "started\n", "")
    assert rows(run.trace, "SELECT ended_ns FROM session") == [(None,)], "nobody waited"
    gate.write_text("\n")
    assert ended_trace(run).events("program, decision, errno") == [("dd", "cleared", None)]


def test_helper_ignores_what_a_service_manager_sends_to_all(
    build: Build, run: Runner, place: Place
) -> None:
    process = subprocess.Popen(
        as_exec(run, [build("storm"), "0", "1", "1000000007", str(place.file)]), cwd=REPOSITORY
    )
    try:
        helper = wait_for_tracer(process.pid)
        assert Path(f"/proc/{helper}/comm").read_text() == "flagshim\n"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(helper, number)
        assert wait_for_tracer(process.pid) == helper
    finally:
        process.terminate()
        assert process.wait(timeout=SECONDS) == -signal.SIGTERM
    ended_trace(run)


def wait_for_tracer(pid: int) -> int:
    deadline = time.monotonic() + SECONDS
    while True:
        assert time.monotonic() < deadline
        status = Path(f"/proc/{pid}/status").read_text()
        tracer = int(status.split("TracerPid:")[1].split()[0])
        if tracer and "storm" in program(pid):
            return tracer
        time.sleep(0.01)


@pytest.mark.parametrize("content", ["#!/no/interpreter\n", None])
def test_command_that_cannot_start(run: Runner, place: Place, content: str | None) -> None:
    script = place.path / "script"
    if content is not None:
        script.write_text(content)
        script.chmod(0o755)
    result = subprocess.run(
        as_exec(run, [str(script)], user=None), capture_output=True, text=True, check=False,
        cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip
    assert result.returncode == 127
    assert result.stderr == f"flagshim: {script}: not found; check the name and PATH\n"
    deadline = time.monotonic() + SECONDS
    while run.trace.exists():
        assert time.monotonic() < deadline, "nothing ran, so there is nothing to report"
        time.sleep(0.01)


def test_qemu_daemonizes(run: Runner, place: Place) -> None:
    """-pidfile names the daemon; SIGTERM to it shuts it down; nobody else is left."""
    qemu = shutil.which("qemu-system-x86_64")
    require("guest", None if qemu else "no qemu-system-x86_64")
    os.chown(place.path, NOBODY, NOBODY)
    pidfile = place.path / "pid"
    argv = ["qemu-system-x86_64", "-daemonize", "-pidfile", str(pidfile), "-S", "-nodefaults",
            "-display", "none", "-accel", "tcg", "-m", "32"]  # fmt: skip
    result = subprocess.run(
        as_exec(run, argv), capture_output=True, text=True, check=False, cwd=REPOSITORY,
        timeout=SECONDS,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    pid = int(pidfile.read_text())
    assert "qemu" in os.readlink(f"/proc/{pid}/exe")
    status = Path(f"/proc/{pid}/status").read_text()
    helper = int(status.split("TracerPid:")[1].split()[0])
    assert Path(f"/proc/{helper}/comm").read_text() == "flagshim\n"
    os.kill(pid, signal.SIGTERM)
    ended_trace(run)
    assert not pidfile.exists(), "QEMU removes it when it ends of itself"
    deadline = time.monotonic() + SECONDS
    while os.path.exists(f"/proc/{helper}"):
        assert time.monotonic() < deadline, "the helper outlived what it served"
        time.sleep(0.01)


def test_under_another_tracer(run: Runner) -> None:
    """It says who is in the way, CMD does not run, and the trace has no session of it."""
    inner = as_exec(run, ["echo", "ran"], user=None)
    trace = run.trace
    outer = run.command(inner, user=None)
    result = subprocess.run(
        outer, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS
    )
    assert (result.returncode, result.stdout) == (125, "")
    assert "it is traced by " in result.stderr
    assert not trace.exists()


def test_subreaper_gets_no_child_it_never_had(run: Runner) -> None:
    code = (
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0);"  # CHILD_SUBREAPER
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    wait = "import os; print(os.wait())"
    command = as_exec(run, ["/usr/bin/python3", "-c", wait], user=None)
    result = subprocess.run(
        ["/usr/bin/python3", "-c", code, *command], capture_output=True, text=True, check=False,
        cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip
    assert "ChildProcessError" in result.stderr, "it had nobody to wait for"


def test_child_signal_is_not_left_pending(run: Runner) -> None:
    code = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD]);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = as_exec(run, ["grep", "-E", "^(ShdPnd|SigPnd)", "/proc/self/status"], user=None)
    out = subprocess.check_output(
        ["/usr/bin/python3", "-c", code, *command], text=True, cwd=REPOSITORY, timeout=SECONDS
    )
    assert out == "SigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n"
