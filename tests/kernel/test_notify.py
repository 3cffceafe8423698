"""The notify engine: supervisors that die, a guard that dies, debuggers, filesystems that wait."""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flagshim import tracee
from flagshim.engines.notify.idlepoll import IdlePoller
from flagshim.probes import reason_notify_unavailable
from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.storms import (
    Storm,
    guards_of,
    new_log,
    release,
    role_of,
    supervisors_of,
    times_in,
)
from tests.kernel.ways import children, status_of
from tests.support import REPOSITORY, flagshim_command, require, rows, wait_until

KILLS, OPENS = 101, 100_003
ENDLESS = 2_000_003
"""Opens of a storm that goes on until it is ended."""


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


def supervisors_among(pids: list[int]) -> list[int]:
    return [pid for pid in pids if role_of(pid).startswith("supervisor of ")]


@pytest.mark.parametrize("mode", ["run", "exec"])
def test_supervisor_killed_again_and_again(start: Callable[..., Storm], mode: str) -> None:
    """No open fails, none hangs, each is in the trace once; one line says that it happened."""
    opens = OPENS if mode == "run" else OPENS // 3
    storm = start(mode, opens)
    guard = storm.process.pid if mode == "run" else wait_until(storm.guards)[0]
    for kill in range(KILLS):
        wait_until(lambda kill=kill: storm.done() > opens * (kill + 1) // (KILLS + 2))
        supervisor = random.choice(wait_until(lambda: supervisors_among(children(guard))))
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda supervisor=supervisor: tracee.has_ended(supervisor))  # not killed twice
    storm.release()
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


def test_nobody_reads_what_the_guard_says(start: Callable[..., Storm]) -> None:
    """CMD has filled the pipe: the guard does not wait for a reader while opens wait for it."""
    storm = start("run", OPENS // 5)
    storm.fill_stderr()
    former = supervisors_among(children(storm.process.pid))
    for supervisor in former:
        os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: set(supervisors_among(children(storm.process.pid))) - set(former))
    storm.release()
    wait_until(lambda: len(storm.times()) == storm.opens)
    assert min(storm.times()) > 0, "none failed"
    _, err = storm.process.communicate(timeout=SECONDS)
    assert b"was killed by signal" not in err
    assert f"{storm.opens} of {storm.opens} opens rewritten".encode() in err


def test_guard_killed(start: Callable[..., Storm]) -> None:
    """The supervisor takes its place: no open fails; what was on its way to the trace may be lost.

    `flagshim run` is the guard, so that nobody is left to say how the program ended.
    """
    storm = start("run", OPENS // 5)
    wait_until(lambda: len(storm.times()) > storm.opens // 3)
    os.kill(storm.process.pid, signal.SIGKILL)
    os.kill(wait_until(storm.guards)[0], signal.SIGKILL)
    storm.release()
    wait_until(lambda: not storm.threads())
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    times = storm.times()
    assert len(times) == storm.opens
    assert min(times) > 0, "none failed"
    texts = [text for (text,) in rows(storm.trace, "SELECT text FROM trouble ORDER BY time_ns")]
    assert sum(text.startswith("the guard died; ") for text in texts) == 2
    assert storm.opens - 2 * 5_003 < storm.events() <= storm.opens
    lost = storm.opens - storm.events()
    assert rows(storm.trace, "SELECT seen, lost FROM session") == [(storm.opens, lost)]
    assert rows(storm.trace, "PRAGMA integrity_check") == [("ok",)]


def test_guard_killed_again_and_again(build: Build, place: Place, folder: Path) -> None:
    """There is one at a time, no open fails, and no event is in the trace twice.

    Each is killed just after it has started its first supervisor, which may not be one yet.
    """
    opens, kills, processes = OPENS // 3, 31, 1009  # with the dead whom init has not reaped
    storm = Storm(
        Runner(folder), build("endure"), place, "run", "--engine", "notify",
        opens=opens, processes=processes,
    )  # fmt: skip
    try:
        guard = storm.process.pid
        wait_until(lambda: has_started_one(guard))
        for _ in range(kills):
            os.kill(guard, signal.SIGKILL)
            wait_until(lambda guard=guard: tracee.has_ended(guard))
            (guard,) = wait_until(lambda: list(filter(has_started_one, storm.guards())))
        storm.release()
        wait_until(lambda: not storm.threads())
        wait_until(lambda: tracee.has_ended(guard))
    finally:
        storm.end()
    assert min(storm.times()) > 0, "none failed"
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    lost = opens - storm.events()
    assert rows(storm.trace, "SELECT seen, lost FROM session") == [(opens, lost)]
    assert rows(storm.trace, "PRAGMA integrity_check") == [("ok",)]
    texts = [text for (text,) in rows(storm.trace, "SELECT text FROM trouble")]
    told = sum(text.startswith("the guard died; ") for text in texts)
    assert 0 < told <= kills, "some had not come to say so"


def has_started_one(guard: int) -> bool:
    """Tell whether a guard has started a supervisor, which may still have the guard's title."""
    try:
        roles = [role_of(child) for child in children(guard)]
    except FileNotFoundError:  # it has ended
        return False
    return any(role.startswith(("supervisor of ", "guard of ")) for role in roles)


def test_guard_killed_while_supervisors_wait_for_a_filesystem(
    fuse_layers: tuple[list[str], Path], run: Runner, build: Build, place: Place
) -> None:
    """Its server makes calls itself, so that who comes next must not wait for them in turn."""
    opens, processes, threads, kills = 10_007, 3, 2, 13
    some = opens - processes * threads - 1  # less than those that need not be released
    argv, mount = fuse_layers
    for path in (mount.parent / "lower", mount.parent / "lower" / "file"):  # not the server's
        os.chown(path, 1, 1)
    log = place.path / "log"
    new_log(log, opens, is_held=True)
    script = (
        'mount=$1; shift; setpriv --bounding-set -fowner --inh-caps -fowner "$@" & '
        "until mountpoint -q $mount; do :; done;"
        f"setpriv --reuid {NOBODY} --clear-groups {build('endure')}"
        f" {processes} {threads} {opens} $mount/file {log}; umount $mount; wait"
    )
    command = run.command(["sh", "-c", script, "sh", str(mount), *argv], "--engine", "notify",
                          user=None)  # fmt: skip
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    wait_until(lambda: len(times_in(log)) > opens // 101)
    guard = process.pid
    (shell,) = filter(is_a_shell, children(guard))
    for _ in range(kills):
        done = min(len(times_in(log)), some)
        os.kill(guard, signal.SIGKILL)
        wait_until(lambda guard=guard: tracee.has_ended(guard))
        (guard,) = wait_until(lambda: list(filter(has_started_one, guards_of(shell))))
        wait_until(lambda done=done: len(times_in(log)) > done)
    release(log)
    wait_until(lambda: tracee.has_ended(shell))
    wait_until(lambda: tracee.has_ended(guard))
    process.communicate(timeout=SECONDS)
    assert len(times_in(log)) == opens
    assert min(times_in(log)) > 0, "none failed"
    ((seen, lost),) = rows(run.trace, "SELECT seen, lost FROM session")
    assert rows(run.trace, "SELECT count(*) FROM event") == [(seen - lost,)]


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


def pollers_among(pids: list[int]) -> set[int]:
    return {pid for pid in pids if role_of(pid).startswith("idle poller of ")}


def test_a_cpu_is_kept_awake(start: Callable[..., Storm]) -> None:
    """By one process at a time, of the lowest priority. Killed, it is started again."""
    require("smp", None if IdlePoller.is_worth_it() else "one CPU only, or a quota (cpu.max)")
    storm = start("run", ENDLESS)
    guard = storm.process.pid
    seen: set[int] = set()
    for _ in range(5):
        (poller,) = wait_until(lambda: pollers_among(children(guard)) - seen)
        wait_until(lambda poller=poller: os.sched_getscheduler(poller) == os.SCHED_IDLE)
        seen.add(poller)
        os.kill(poller, signal.SIGKILL)
    seen |= wait_until(lambda: pollers_among(children(guard)) - seen)
    storm.end()
    wait_until(lambda: all(tracee.has_ended(poller) for poller in seen))
    assert min(storm.times()) > 0, "no open failed"
    assert rows(storm.trace, "SELECT count(*) FROM trouble") == [(0,)]


def test_the_next_guard_keeps_a_cpu_awake(start: Callable[..., Storm]) -> None:
    """Nobody but it could, and nothing is left of the former one, not even if it is stopped."""
    require("smp", None if IdlePoller.is_worth_it() else "one CPU only, or a quota (cpu.max)")
    storm = start("run", ENDLESS)
    (former,) = wait_until(lambda: pollers_among(children(storm.process.pid)))
    os.kill(former, signal.SIGSTOP)
    wait_until(lambda: status_of(former, "State")[0] == "T")
    os.kill(storm.process.pid, signal.SIGKILL)
    wait_until(lambda: tracee.has_ended(former))
    (guard,) = wait_until(storm.guards)
    (poller,) = wait_until(lambda: pollers_among(children(guard)))
    storm.end()
    wait_until(lambda: tracee.has_ended(guard))
    wait_until(lambda: tracee.has_ended(poller))
    assert min(storm.times()) > 0, "no open failed"


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
    try:
        return bool(int(status_of(pid, "ShdPnd"), 16) >> (number - 1) & 1)
    except FileNotFoundError:
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


@pytest.fixture
def folder(place: Place) -> Path:
    """A folder in which anybody may write."""
    folder = place.path / "anybodys"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


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
    new_log(log, opens, is_held=True)
    storm = [build("endure"), "7", "13", str(opens), str(place.file), str(log)]
    argv = as_nobody("run", folder, *storm, limit="ulimit -n 41")
    program = subprocess.Popen(argv, stderr=subprocess.PIPE, user=NOBODY, group=NOBODY,
                               extra_groups=[], cwd=REPOSITORY)  # fmt: skip
    wait_until(lambda: len(times_in(log)) > opens // 3)
    os.kill(program.pid, signal.SIGKILL)
    release(log)
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
    wait_until(lambda: any(tracee.comm(pid) == b"cat" for pid in children(program.pid)))
    (pid,) = (pid for pid in children(program.pid) if tracee.comm(pid) == b"cat")
    wait_until(lambda: supervisors_of(pid))
    for supervisor in supervisors_of(pid):
        os.kill(supervisor, signal.SIGSTOP)
    program.communicate(timeout=SECONDS)
    assert program.returncode == 0
