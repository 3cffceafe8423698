"""The notify engine: when it can be had, what it does not serve, and limits that it meets."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from flagshim import tracee
from flagshim.probes import reason_notify_unavailable
from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.storms import (
    guards_of,
    hold,
    new_log,
    supervisors_of,
    times_in,
)
from tests.kernel.ways import status_of
from tests.processes import children, name_of
from tests.support import REPOSITORY, flagshim_command, require, rows, wait_until


@pytest.fixture(autouse=True)
def can_listen() -> None:
    require("notify", reason_notify_unavailable())


def test_server_of_a_filesystem_that_is_gone(
    fuse_layers: tuple[list[str], Path], run: Runner
) -> None:
    """That is how the open fails, and nothing of ours has: the kernel still knows the path."""
    argv, mount = fuse_layers
    server = subprocess.Popen(argv)
    wait_until(mount.is_mount)
    with (mount / "file").open() as file:
        assert file.read() == "lower\n"
    server.kill()
    server.wait(SECONDS)
    dd = ["dd", "iflag=noatime", "status=none", f"if={mount}/file", "of=/dev/null"]
    shim = run.supervised(dd, "--engine", "notify")
    assert shim.status == 1
    assert "Transport endpoint is not connected" in shim.err
    assert shim.events("decision, reason, errno") == [
        ("kept", "failed for another reason", "ENOTCONN")
    ]
    assert rows(shim.trace, "SELECT seen, lost FROM session") == [(1, 0)]
    assert rows(shim.trace, "SELECT kind FROM blind_spot") == []


def test_last_line_says_what_was_not_rescued(run: Runner, place: Place) -> None:
    script = f"dd iflag=noatime if={place.file} status=none; dd iflag=noatime if=/dev/null"
    shim = run.supervised(["sh", "-c", script], "--engine", "notify")
    assert "flagshim: 1 of 2 opens rewritten, 1 not rescued; see: " in shim.err


WAITS = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, sys.argv[2] == "interrupts")
print(os.getpid(), flush=True)
sys.stdin.readline()
class Open:  # not os.open, which tries again by itself (PEP 475)
    import ctypes
    call = ctypes.CDLL(None, use_errno=True).open
fd = Open.call(sys.argv[1].encode(), os.O_RDONLY | os.O_NOATIME)
print(os.strerror(Open.ctypes.get_errno()) if fd < 0 else "opened", flush=True)
"""


def is_pending(pid: int, number: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return bool(int(status_of(pid, "ShdPnd"), 16) >> (number - 1) & 1)
    return False


@pytest.mark.parametrize(
    ("how", "outcome"), [("interrupts", "Interrupted system call"), ("restarts", "opened")]
)
def test_signal_before_a_call_is_received(
    run: Runner, place: Place, how: str, outcome: str
) -> None:
    """A difference that stays: without SA_RESTART it is EINTR (docs/engines.md)."""
    argv = ["/usr/bin/python3", "-c", WAITS, str(place.file), how]
    command = run.command(argv, "--engine", "notify")
    program = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert program.stdin
    assert program.stdout
    pid = int(program.stdout.readline())
    stopped = wait_until(lambda: supervisors_of(pid))
    for supervisor in stopped:
        os.kill(supervisor, signal.SIGSTOP)
        wait_until(lambda supervisor=supervisor: status_of(supervisor, "State")[0] == "T")
    program.stdin.write("\n")
    program.stdin.flush()
    wait_until(lambda: "seccomp_do_user_notification" in Path(f"/proc/{pid}/wchan").read_text())
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: tracee.has_ended(pid) or not is_pending(pid, signal.SIGUSR1))
    for supervisor in stopped:
        os.kill(supervisor, signal.SIGCONT)
    out, _ = program.communicate(timeout=SECONDS)
    assert out == f"{outcome}\n"
    events = [("cleared",)] if how == "restarts" else []
    assert run.last().events("decision") == events


def test_program_of_a_listener_cannot_run_as_another(
    build: Build, run: Runner, place: Place
) -> None:
    """flagshim inside flagshim: a second listener cannot be (EBUSY); auto uses ptrace, aloud."""
    odd = [build("odd"), "open", str(place.file)]
    inner = [*flagshim_command(), "run", "-o", str(place.path / "inner.db"), "-u", "nobody"]
    outer = run.supervised([*inner, "--engine", "notify", "--", *odd], "--engine", "notify",
                           user=None)  # fmt: skip
    assert outer.status == 125
    assert "has a listener already" in outer.err
    outer = run.supervised([*inner, "--engine", "auto", "--", *odd], "--engine", "notify",
                           user=None)  # fmt: skip
    assert (outer.status, outer.out) == (0, "noatime 0\n"), outer.err
    assert "ptrace is used, not notify: " in outer.err
    assert rows(place.path / "inner.db", "SELECT engine FROM session") == [("ptrace",)]


def test_under_a_tracer_that_leaves_us_alone_it_says_what_it_lacks(
    build: Build, run: Runner, place: Place
) -> None:
    """openat2 fails with ENOSYS there. ptrace goes without."""
    odd = [build("odd"), "open", str(place.file)]
    inner = [*flagshim_command(), "run", "-o", str(place.path / "inner.db"), "-u", "nobody"]
    outer = ["--except", "python*"]
    shim = run.supervised([*inner, "--engine", "notify", "--", *odd], *outer, user=None)
    assert shim.status == 125
    assert "openat2(2) is forbidden" in shim.err
    shim = run.supervised([*inner, "--engine", "auto", "--", *odd], *outer, user=None)
    assert shim.status == 0, shim.err
    assert rows(place.path / "inner.db", "SELECT engine FROM session") == [("ptrace",)]


@pytest.mark.parametrize(
    ("options", "engine", "cause"),
    [
        ([], "notify", ""),
        (["--when", "always"], "ptrace", "a rule says always"),
        (["--if-supervisor-dies", "kill"], "ptrace", "others serve on"),
    ],
)
def test_auto(run: Runner, options: list[str], engine: str, cause: str) -> None:
    shim = run.supervised(["true"], "--engine", "auto", *options)
    assert shim.status == 0, shim.err
    assert shim.session("engine") == (engine,)
    assert cause in shim.err
    assert len(shim.err.splitlines()) == (2 if cause else 1)


def test_auto_for_32_bits(build: Build, run: Runner, place: Place) -> None:
    shim = run.supervised([build("calls", "-m32"), "open", str(place.file)], "--engine", "auto")
    assert "is a program of 32 bits" in shim.err
    assert shim.session("engine") == ("ptrace",)


def test_asked_for_what_it_cannot_do(run: Runner) -> None:
    shim = run.supervised(["true"], "--engine", "notify", "--if-supervisor-dies", "kill")
    assert shim.status == 125
    assert len(shim.err.splitlines()) == 1
    assert not shim.trace.exists()


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
        wait_until(lambda: "sh" not in map(name_of, children(process.pid)))
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


def as_nobody(command: str, folder: Path, *words: str, limit: str = "true") -> list[str]:
    """Return the command line of flagshim as an ordinary user's, with a limit of ulimit."""
    shim = [*flagshim_command(), command, "--engine", "notify", "-o", str(folder / "t.db")]
    return ["sh", "-c", f'{limit}; exec "$@"', "sh", *shim, "--", *words]


@pytest.mark.parametrize("command", ["run", "exec"])
@pytest.mark.parametrize("limit", ["ulimit -n 11", "ulimit -v 55000"])
def test_without_a_supervisor_nothing_begins(
    run: Runner, folder: Path, command: str, limit: str
) -> None:
    done = run.native(as_nobody(command, folder, "touch", str(folder / "began"), limit=limit))
    assert done.returncode == 125, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (folder / "began").exists()


def test_opens_go_on_while_no_supervisor_can_be_started(
    run: Runner, place: Place, folder: Path
) -> None:
    """They fail as they would natively, instead of waiting; and are counted."""
    gate = folder / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    script = 'read x <"$1"; exec dd iflag=noatime status=none if="$2" of=/dev/null'
    argv = as_nobody("exec", folder, "sh", "-c", script, "sh", str(gate), str(place.file))
    program = subprocess.Popen(
        argv, stderr=subprocess.PIPE, text=True, user=NOBODY, group=NOBODY, extra_groups=[],
        cwd=REPOSITORY,
    )  # fmt: skip
    go = os.open(gate, os.O_RDWR)
    (guard,) = wait_until(lambda: guards_of(program.pid))
    wait_until(lambda: supervisors_of(program.pid))
    limit = ["prlimit", "--pid", str(guard), "--nproc=1:1"]
    run.native(limit, group=NOBODY, extra_groups=[]).check_returncode()
    for supervisor in supervisors_of(program.pid):
        os.kill(supervisor, signal.SIGKILL)
    os.write(go, b"go\n")
    _, err = program.communicate(timeout=SECONDS)
    os.close(go)
    assert "Operation not permitted" in err
    wait_until(lambda: tracee.has_ended(guard))
    assert rows(folder / "t.db", "SELECT kind, program, count FROM blind_spot") == [
        ("no supervisor", "dd", 1)
    ]


def test_fewer_descriptors_than_threads(
    run: Runner, build: Build, place: Place, folder: Path
) -> None:
    """No open fails, not even those after the guard is killed."""
    opens, trace = 5_003, folder / "t.db"
    log = folder / "log"
    new_log(log, opens, held=1)
    storm = [build("endure"), "7", "13", str(opens), str(place.file), str(log)]
    argv = as_nobody("run", folder, *storm, limit="ulimit -n 41")
    program = subprocess.Popen(argv, stderr=subprocess.PIPE, user=NOBODY, group=NOBODY,
                               extra_groups=[], cwd=REPOSITORY)  # fmt: skip
    wait_until(lambda: len(times_in(log)) > opens // 3)
    os.kill(program.pid, signal.SIGKILL)
    hold(log, 0)
    program.communicate(timeout=SECONDS)
    wait_until(lambda: rows(trace, "SELECT ended_ns FROM session") != [(None,)])
    times = times_in(log)
    assert len(times) == opens
    assert min(times) > 0, "none failed"
    ((seen, lost),) = rows(trace, "SELECT seen, lost FROM session")
    assert seen == opens
    assert rows(trace, "SELECT decision, count(*) FROM event GROUP BY 1") == [
        ("cleared", opens - lost)
    ]
    assert rows(trace, "SELECT kind FROM blind_spot") == []


def test_supervisor_that_is_stopped_does_not_outlive_the_program(run: Runner) -> None:
    program = subprocess.Popen(run.command(["cat"], "--engine", "notify"), stdin=subprocess.PIPE,
                               cwd=REPOSITORY)  # fmt: skip
    (pid,) = wait_until(lambda: [pid for pid in children(program.pid) if name_of(pid) == "cat"])
    wait_until(lambda: supervisors_of(pid))
    for supervisor in supervisors_of(pid):
        os.kill(supervisor, signal.SIGSTOP)
    program.communicate(timeout=SECONDS)
    assert program.returncode == 0


CREATES = """
import os, sys
for name in sys.argv[1:]:
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_CREAT | os.O_NOATIME))
        print("opened")
    except OSError as error:
        print(error.strerror)
"""


def test_o_creat_on_a_link(run: Runner, place: Place, folder: Path) -> None:
    """Refused, left to the kernel, and said so; not if it leads to a file of one's own."""
    links = {"theirs": place.file, "dangling": folder / "new", "mine": folder / "mine"}
    links["mine"].touch()
    os.chown(links["mine"], NOBODY, NOBODY)
    for name, target in links.items():
        (place.path / name).symlink_to(target)
    argv = ["/usr/bin/python3", "-c", CREATES, *(str(place.path / name) for name in links)]
    shim = run.supervised(argv, "--engine", "notify")
    assert shim.out == "Operation not permitted\nopened\nopened\n"
    assert shim.events("decision, reason, errno") == [
        ("kept", "not rescued: O_CREAT on a symbolic link", "EPERM"),
        ("kept", "not refused, as foreseen", None),
        ("kept", "not refused, as foreseen", None),
    ]
    assert "0 of 3 opens rewritten, 1 not rescued" in shim.err
