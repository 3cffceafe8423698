"""`flagshim attach`: served from then on, and left as it was."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flagshim.engines.attach import Target, refusal_of
from tests.kernel.asked import Asked
from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.ways import attach, status_of, traced
from tests.processes import threads_of
from tests.support import REPOSITORY, flagshim_command, require, rows, wait_until


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_served_from_then_on_and_no_longer(run: Runner, asked: Asked, number: int) -> None:
    assert asked.ask() == "Operation not permitted"
    flagshim = attach(run, asked.pid)
    assert [asked.ask() for _ in range(7)] == ["opened"] * 7
    assert asked.ask("fork") == "opened", "a child is served too"
    flagshim.send_signal(number)
    assert "8 of 8 opens rewritten" in flagshim.communicate(timeout=SECONDS)[1]
    assert flagshim.returncode == 0
    assert not traced(asked.pid)
    assert asked.ask() == "Operation not permitted"
    events = rows(run.trace, "SELECT decision, errno, tries FROM event")
    assert events == [("cleared", None, 1)] * 8
    assert rows(run.trace, "SELECT engine, uid, exit_status FROM session") == [
        ("ptrace attach", NOBODY, None)
    ]


def test_for_a_while(run: Runner, asked: Asked) -> None:
    for seconds in ("0.3", "1", "3", "10", "30"):  # until an open falls into it
        flagshim = attach(run, asked.pid, "--for", seconds)
        meanwhile = asked.ask()
        assert flagshim.wait(timeout=SECONDS) == 0
        assert asked.ask() == "Operation not permitted"
        if meanwhile == "opened":
            return
    pytest.fail(meanwhile)


def test_until_it_ends(run: Runner, asked: Asked) -> None:
    flagshim = attach(run, asked.pid)
    asked.process.communicate(timeout=SECONDS)
    assert flagshim.wait(timeout=SECONDS) == 0


def test_killed_while_attached(run: Runner, asked: Asked) -> None:
    """The kernel detaches; the program goes on with its EPERMs."""
    flagshim = attach(run, asked.pid)
    assert asked.ask() == "opened"
    flagshim.kill()
    flagshim.wait(timeout=SECONDS)
    assert asked.ask() == "Operation not permitted"


def test_stopped_process_stays_stopped(run: Runner, asked: Asked) -> None:
    os.kill(asked.pid, signal.SIGSTOP)
    wait_until(lambda: status_of(asked.pid, "State").startswith("T"))
    flagshim = attach(run, asked.pid, "--for", "0.2")
    assert flagshim.wait(timeout=SECONDS) == 0
    wait_until(lambda: status_of(asked.pid, "State") == "T (stopped)")  # anew, having been let go
    os.kill(asked.pid, signal.SIGCONT)
    assert asked.ask() == "Operation not permitted"


def test_says_how_long(run: Runner, asked: Asked) -> None:
    run.command([])
    command = [*flagshim_command(), "attach", "-o", str(run.trace), "--for", "997", str(asked.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as flagshim:
        assert flagshim.stderr is not None
        said = flagshim.stderr.readline()
        flagshim.terminate()
    assert said == f"flagshim: PID {asked.pid} is served from now on, for 997 s or until ^C\n"


TIMES_101 = """
import os, sys
from pathlib import Path
from flagshim import tracee
from flagshim.engines.policy import Fate, Policy
from flagshim.posts import Supervision
from flagshim.rules import BUILT_IN, Exemption
from flagshim.session import attach

pid, folder = int(sys.argv[1]), Path(sys.argv[2])
policy = Policy((BUILT_IN,), Exemption(()), Fate.CONTINUE)
for number in range(101):
    child = os.fork()
    if child == 0:
        attach(pid, Supervision(policy, folder / f"{number}.db"), 0.03)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert tracee.tracer_of(pid) == 0
    assert len(os.listdir(f"/proc/{pid}/task")) == 5
"""
"""As `flagshim attach --for 0.03` does, but that Python starts once."""


def test_101_times_to_a_busy_program(build: Build, place: Place, tmp_path: Path) -> None:
    """No call fails that would not have, no thread is lost, nothing is left."""
    busy = subprocess.Popen(
        [build("busy"), str(place.file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, user=NOBODY,
    )  # fmt: skip
    try:
        wait_until(lambda: threads_of(busy.pid) == 5)
        done = subprocess.run(
            [sys.executable, "-c", TIMES_101, str(busy.pid), str(tmp_path)],
            capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert rows(tmp_path / "100.db", "SELECT engine FROM session") == [("ptrace attach",)]
    finally:
        out, error = busy.communicate("x", timeout=SECONDS)
    assert (out, error) == ("calls many wrong 0\n", "")


def test_name_that_is_not_utf8(run: Runner, place: Place) -> None:
    program = os.fsencode(place.path) + b"/sl\xffeep"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "20"]) as sleeper:
        try:
            assert attach(run, sleeper.pid, "--for", "0.1").wait(timeout=SECONDS) == 0
        finally:
            sleeper.kill()


def refusal(*arguments: str, **kwargs: object) -> str:
    result = subprocess.run(
        [*flagshim_command(), "attach", *arguments], capture_output=True, text=True, check=False,
        cwd=REPOSITORY, timeout=SECONDS, **kwargs,
    )  # fmt: skip
    assert result.returncode == 125
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def refused_by_the_kernel(*prefix: str, place: Place, pid: int) -> str:
    """What is said to somebody who has no say over the process."""
    place.path.chmod(0o1777)
    result = subprocess.run(
        [*prefix, *flagshim_command(), "attach", "-o", str(place.path / "t.db"), str(pid)],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip
    assert result.returncode == 125
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(place.path) == ["file"]
    return result.stderr


def test_refusals_by_the_kernel_name_their_cause(place: Place, asked: Asked) -> None:
    """Whose it is, and what a container lacks: the kernel says EPERM to all of them."""
    as_daemon = ("setpriv", "--reuid", "1", "--regid", "1", "--clear-groups")
    said = refused_by_the_kernel(*as_daemon, place=place, pid=asked.pid)
    assert f"cannot trace process {asked.pid}: it belongs to user {NOBODY}; run" in said
    without = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace")
    said = refused_by_the_kernel(*without, place=place, pid=asked.pid)
    assert "root has no CAP_SYS_PTRACE, as in a container; give" in said
    unshare = ("unshare", "--user", "--map-root-user")
    tried = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    require("userns", tried.stderr or None)
    said = refused_by_the_kernel(*unshare, place=place, pid=os.getpid())
    assert "a user namespace that the process is not of; run flagshim as root outside" in said


@pytest.mark.parametrize(
    ("scope", "euid", "told"), [(1, 1000, True), (2, 0, False), (3, 0, True), (0, 1000, False)]
)
def test_yama_is_named(
    scope: int, euid: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what its sysctl would say: few kernels have it, and nobody turns it on for a test."""
    sysctl = tmp_path / "ptrace_scope"
    sysctl.write_text(f"{scope}\n")
    monkeypatch.setattr("flagshim.engines.attach.YAMA", str(sysctl))
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    said = str(refusal_of(Target(os.getpid(), euid, ["cat"])))
    assert (f"(ptrace_scope {scope})" in said) == told


def test_refusals_name_their_cause(run: Runner, asked: Asked, tmp_path: Path) -> None:
    trace = tmp_path / "t.db"
    assert "no process 4194304" in refusal("-o", str(trace), "4194304")
    assert "kernel thread" in refusal("-o", str(trace), "2")
    assert "is not a valid integer" in refusal("-o", str(trace), "qemu")
    exempt = refusal("-o", str(trace), "--except", "python3*", str(asked.pid))
    assert "is exempt itself" in exempt
    flagshim = attach(run, asked.pid)
    said = refusal("-o", str(trace), str(asked.pid))
    assert f"traced already, by {Path(f'/proc/{flagshim.pid}/comm').read_text().strip()}" in said
    flagshim.terminate()
    flagshim.communicate(timeout=SECONDS)
    assert not trace.exists()
