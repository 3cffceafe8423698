"""Signals: every kind, every moment, and stopping. What comes natively comes under flagshim."""

import re
import shlex
import signal
import subprocess

import pytest

from tests.kernel.conftest import Build, Place, Runner
from tests.kernel.terminal import INTERRUPT, QUIT, SUSPEND, Terminal
from tests.kernel.ways import Way, as_exec, ended_trace
from tests.support import REPOSITORY, rows


@pytest.mark.parametrize("mode", ["actions", "senders", "queue", "faults"])
def test_signals_of_every_kind(build: Build, run: Runner, way: Way, mode: str) -> None:
    """1 to 64, 33 and the real-time ones among them: action, order, count, sender and value."""
    signals = build("signals")
    natively = run.native([signals, mode])
    assert natively.returncode == 0
    assert len(natively.stdout.splitlines()) > 8
    shim = way([signals, mode])
    assert (shim.status, shim.out.splitlines()) == (0, natively.stdout.splitlines())


@pytest.mark.parametrize("call", ["openat", "openat2"])
def test_signal_between_refusal_and_retry(
    build: Build, tracing_way: Way, place: Place, call: str
) -> None:
    """A handler that opens runs before the retry: each open is right, each is one event."""
    other = place.path / "other"
    other.write_text("other\n")
    # By the kernel's refusal, not foreseen.
    paths = [f"/proc/self/root{path}" for path in (place.file, other)]
    shim = tracing_way([build("between"), call, *paths, "1009"])
    match = re.fullmatch(r"opens (\d+) wrong 0 0 handled (\d+) between (\d+)\n", shim.out)
    assert match, shim.out + shim.err
    opens, handled, between = map(int, match.groups())
    assert between >= 7, "no signal came where it was to come"
    columns = "path, resolved, decision, errno, tries, count(*)"
    assert set(shim.events(columns, "1 GROUP BY 1, 2, 3, 4, 5")) == {
        (paths[0], str(place.file), "cleared", None, 2, opens),
        (paths[1], str(other), "cleared", None, 2, handled),
    }


def test_end_in_the_middle_of_a_stop(build: Build, way: Way, place: Place) -> None:
    """SIGKILL, exit_group and exec, 101 times: nothing hangs, nothing is said to be wrong."""
    shim = way([build("killed"), "101", str(place.file)])
    assert (shim.status, shim.out) == (0, "right 101 then 1\n"), shim.err
    assert rows(shim.trace, "SELECT kind FROM blind_spot") == []
    assert shim.session("lost, seen - (SELECT count(*) FROM event)") == (0, 0)


def test_group_stop_of_many_threads(build: Build, run: Runner, way: Way, place: Place) -> None:
    """All stop, none moves, all go on, and the parent hears of each stop once."""
    argv = [build("stopgo"), "31", str(place.file)]
    expected = "stopped 31 continued 31 moved 0 else 0\n"
    assert run.native(argv).stdout == expected
    assert way(argv).out == expected


SHELL = ["env", "PS1=ready> ", "bash", "--norc", "--noprofile", "--noediting", "-i"]


def jobs(argv: list[str]) -> list[str]:
    """Work with jobs in an interactive shell; return its exit status and what it said of $?."""
    with Terminal(argv) as terminal:
        terminal.expect(b"ready> ")
        terminal.type("sh -c 'echo up; read x; echo got $x; exit 5'")
        terminal.expect(b"up")
        terminal.press(SUSPEND)
        terminal.expect(b"Stopped")
        terminal.type("echo stopped $?; bg")
        terminal.expect(b"stopped ")
        # It reads from the terminal in the background: SIGTTIN.
        terminal.type('while [ -z "$(jobs -s)" ]; do :; done; echo again; fg')
        terminal.expect(b"again")
        terminal.type("word")
        terminal.expect(b"got word")
        terminal.type("echo status $?; sh -c 'echo up; exec cat'")
        terminal.expect(b"up")
        terminal.press(INTERRUPT)
        terminal.expect(b"ready> ")
        terminal.type("echo status $?; sh -c 'echo up; exec cat'")
        terminal.expect(b"up")
        terminal.press(QUIT)
        terminal.expect(b"ready> ")
        terminal.type("echo status $?; exit 7")
        status = terminal.wait()
    return [str(status), *re.findall(r"(?:stopped|status) \d+", terminal.text)]


@pytest.mark.parametrize("command", ["run", "exec"])
def test_interactive_shell_with_jobs(run: Runner, command: str) -> None:
    """^Z, bg, SIGTTIN, fg, ^C and ^\\ in a shell that is under flagshim, as without it."""
    natively = jobs(SHELL)
    assert natively == [
        "7",
        f"stopped {128 + signal.SIGTSTP}",
        "status 5",
        "status 130",
        "status 131",
    ]
    argv = run.command(SHELL, user=None) if command == "run" else as_exec(run, SHELL, user=None)
    assert jobs(argv) == natively
    assert ended_trace(run).session("exit_status") == (7,)


SAVES_FIRST = """
import os, signal, sys
def on_stop(*_):
    os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_NOATIME))
    os.kill(os.getpid(), signal.SIGSTOP)
def on_interrupt(*_):
    print("caught", flush=True)
    sys.exit(9)
signal.signal(signal.SIGTSTP, on_stop)
signal.signal(signal.SIGINT, on_interrupt)
print("up", flush=True)
print("got", sys.stdin.readline(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("command", ["run", "exec"])
def test_job_of_an_interactive_shell(run: Runner, place: Place, command: str) -> None:
    """flagshim itself as a job: ^Z stops it once CMD has stopped, which may open files before."""
    inner = ["/usr/bin/python3", "-c", SAVES_FIRST, str(place.file)]
    argv = run.command(inner, user=None) if command == "run" else as_exec(run, inner, user=None)
    with Terminal(SHELL) as terminal:
        terminal.type(shlex.join(argv).replace("\n", "'$'\\n''"))
        terminal.expect(b"up")
        terminal.press(SUSPEND)
        terminal.expect(b"Stopped")
        terminal.type("fg; echo status $?")
        terminal.type("word")
        terminal.expect(b"got word")
        terminal.press(INTERRUPT)
        terminal.expect(b"caught")
        terminal.expect(b"status 9")
    shim = ended_trace(run)
    assert shim.session("exit_status") == (9,)
    assert shim.events("decision") == [("kept",)]


ENDS = ("exit", "kill", "abort", "threads", "leader", "exec")
ROUNDS = 101


def test_parent_with_a_pidfd_finds_its_child_ended(build: Build, run: Runner, way: Way) -> None:
    """It waits once, without blocking, as soon as it has heard: GLib's child watch does."""
    program = build("reaper")
    natively = run.native([program, str(ROUNDS)])
    assert [line.split()[:2] for line in natively.stdout.splitlines()] == [
        [end, str(ROUNDS)] for end in ENDS
    ]
    shim = way([program, str(ROUNDS)])
    assert (shim.status, shim.out) == (0, natively.stdout), shim.err


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("mode", ["run", "exec"])
def test_end_of_the_command_is_in_the_trace(build: Build, run: Runner, mode: str, end: str) -> None:
    """However its threads end: `exec` has nobody to wait for, and hears of threads only."""
    argv = [build("reaper"), end]
    command = as_exec(run, argv) if mode == "exec" else run.command(argv)
    natively = run.native(argv).returncode
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True)
    assert done.returncode == natively
    assert ended_trace(run).session("exit_status") == (natively,)
