"""The program finds everything as it would alone, and is seen to end as it did."""

import contextlib
import errno
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from flagshim.tracee import has_ended
from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Run, Runner
from tests.kernel.ways import Way, status_of
from tests.processes import children, program
from tests.support import REPOSITORY, read_until, require, rows, wait_until


@pytest.mark.parametrize("status", [0, 1, 7, 125, 255])
def test_exit_status(run: Runner, status: int) -> None:
    assert run.supervised(["sh", "-c", f"exit {status}"]).status == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, 34, 64])
def test_fatal_signal_is_raised_again(run: Runner, number: int) -> None:
    shim = run.supervised(["sh", "-c", f"kill -{int(number)} $$"])
    assert shim.status == -number
    assert shim.session("exit_status") == (-number,)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["/no/such/program"], 127),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["/tmp"], 126),
    ],
)
def test_command_that_cannot_start(run: Runner, argv: list[str], status: int) -> None:
    shim = run.supervised(argv)
    assert shim.status == status
    assert len(shim.err.splitlines()) == 1
    assert shim.err.startswith(f"flagshim: {argv[0]}: ")
    assert not shim.trace.exists(), "nothing ran, so there is nothing to report"


def test_failed_start_leaves_an_existing_trace_as_it_was(run: Runner, tmp_path: Path) -> None:
    first = run.supervised(["true"])
    script = tmp_path / "script"
    script.write_text("#!/no/interpreter\n")
    script.chmod(0o755)
    tmp_path.chmod(0o755)
    command = run.command([str(script)], user=None)
    command[command.index("-o") + 1] = str(first.trace)
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert result.returncode == 127, result.stderr
    assert first.session("count(*), max(id)") == (1, 1)


STATUS = ["grep", "-E", "^(Sig[^Q]|Uid|Gid|Groups|Cap|Umask|Cpus_allowed:)", "/proc/self/status"]


SEEN = (
    "import os, sys, resource;"
    "print(sorted(os.environb.items()));"
    "print(os.getpgid(0) == os.getpgid(os.getppid()), os.getsid(0) == os.getsid(os.getppid()));"
    "print(os.getcwd(), os.nice(0), sorted(os.sched_getaffinity(0)));"
    "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE));"
)


def seen_by_program(argv: list[str], **kwargs: object) -> str:
    kwargs.setdefault("cwd", REPOSITORY)
    return subprocess.run(
        argv, stdout=subprocess.PIPE, text=True, check=True, timeout=SECONDS, **kwargs
    ).stdout


@pytest.mark.parametrize("locale", [{"LANG": "C"}, {"LC_ALL": "C.UTF-8"}])
def test_environment_and_standing(run: Runner, locale: dict[str, str]) -> None:
    environment = {"PATH": os.environ["PATH"], "ODD": "a\nb", **locale}
    probe = ["/usr/bin/python3", "-S", "-c", SEEN]
    # Python as the probe adds LC_CTYPE itself, natively too.
    natively = seen_by_program(probe, env=environment)
    assert seen_by_program(run.command(probe, user=None), env=environment) == natively


def test_signals_and_credentials(run: Runner) -> None:
    """Among them SIGPIPE, which Python ignores and a program must not inherit so."""
    assert seen_by_program(run.command(STATUS, user=None)) == seen_by_program(STATUS)


def test_environment_byte_for_byte(run: Runner) -> None:
    environment = {b"PATH": os.environb[b"PATH"], b"BYTES": b"\xff\xfe", b"LANG": b"C"}
    natively = subprocess.check_output(["env", "-0"], env=environment)
    command = run.command(["env", "-0"], user=None)
    assert subprocess.check_output(command, env=environment, cwd=REPOSITORY) == natively


def test_inherited_descriptors(run: Runner) -> None:
    """What the program was given it has; what it was not given it does not see."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"from the caller\n")
    os.close(write_end)
    argv = ["sh", "-c", f"ls /proc/$$/fd; cat /proc/self/fd/{read_end}"]
    try:
        shim = run.supervised(argv, user=None, pass_fds=[read_end], stdin=subprocess.DEVNULL)
    finally:
        os.close(read_end)
    assert set(shim.out.split("\n")) == {"0", "1", "2", str(read_end), "from the caller", ""}


def test_closed_standard_descriptors(run: Runner) -> None:
    command = " ".join(f"'{word}'" for word in run.command(["ls", "/proc/self/fd"], user=None))
    natively = subprocess.run(
        ["sh", "-c", "ls /proc/self/fd <&-"], capture_output=True, text=True, check=False
    )
    shim = subprocess.run(
        ["sh", "-c", f"{command} <&-"], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert shim.stdout == natively.stdout


def test_supervisor_lets_go_of_what_the_program_closes(run: Runner) -> None:
    """The reader of the program's stdout sees it end when the program closes it."""
    argv = run.command(["sh", "-c", "echo out; exec >&-; read line; exit 0"], user=None)
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert read_until(process.stdout.fileno(), None) == b"out\n"
        assert process.poll() is None, "the program is still there"
    finally:
        process.stdin.write(b"\n")
        process.stdin.close()
    assert process.wait(timeout=SECONDS) == 0


def test_supervisor_lets_go_of_what_it_handed_on(run: Runner) -> None:
    """The same for a descriptor above 2: who reads its other end waits for CMD alone."""
    read_end, write_end = os.pipe()
    argv = run.command(["bash", "-c", f"exec {write_end}>&-; read line"], user=None)
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY,
        pass_fds=[write_end],
    )  # fmt: skip
    os.close(write_end)
    try:
        assert read_until(read_end, None) == b""
        assert process.poll() is None, "the program is still there"
    finally:
        os.close(read_end)
        process.communicate(b"\n", timeout=SECONDS)


@pytest.mark.parametrize(
    "mode",
    ["thread-exec", "zombie-leader", "vfork", "spawn", "orphan", "clone0", "clone3-0", "open"],
)
def test_awkward_places_to_open_from(
    build: Build, run: Runner, way: Way, place: Place, mode: str
) -> None:
    awkward = build("awkward")
    assert run.native([awkward, mode, str(place.file)]).returncode == 1
    shim = way([awkward, mode, str(place.file)])
    assert shim.status == 0, shim.err
    assert shim.events("syscall, decision, errno, resolved") == [
        ("openat", "cleared", None, str(place.file))
    ]


@pytest.mark.parametrize("call", ["clone", "clone3"])
def test_child_that_is_not_to_be_traced(
    build: Build, run: Runner, way: Way, place: Place, call: str
) -> None:
    """CLONE_UNTRACED: the child is served all the same, the parent's arguments are as they were."""
    untraced = build("untraced")
    assert run.native([untraced, call, str(place.file)]).returncode == errno.EPERM
    shim = way([untraced, call, str(place.file)])
    if way.name == "inject":  # docs/awkward.md, differences that remain
        assert shim.status == errno.ENOSYS
        return
    assert shim.status == 0, shim.err
    assert shim.events("decision, errno") == [("cleared", None)]


@pytest.mark.parametrize("path", ["{}/fifo", "/proc/self/cwd/fifo"], ids=["foreseen", "tried"])
def test_restarted_call_is_one_event(build: Build, run: Runner, place: Place, path: str) -> None:
    fifo = place.path / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    argv = ["sh", "-c", 'cd "$0" && exec "$@"', str(place.path), build("fifo"), "restart",
            path.format(place.path)]  # fmt: skip
    shim = run.supervised(argv)
    assert shim.out == "attempts 1 errno 0\n"
    assert shim.events("syscall, decision, errno, resolved") == [
        ("openat", "cleared", None, str(fifo))
    ]


def test_interrupted_call_fails_as_it_would(build: Build, run: Runner, place: Place) -> None:
    fifo = place.path / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    assert run.supervised([build("fifo"), "interrupt", str(fifo)]).out == "attempts 3 errno 0\n"


def test_filter_of_the_program_with_ret_trace(build: Build, run: Runner) -> None:
    assert run.supervised([build("traps")]).status == 0


def test_setuid_helper_of_a_dropped_user(build: Build, run: Runner) -> None:
    """Installed by root without no_new_privs, the filter leaves set-user-ID programs alone."""
    helper = build("setuid-id")
    os.chown(helper, 0, 0)
    os.chmod(helper, 0o4755)
    if run.native([helper]).stdout != "0\n":
        pytest.skip("a nosuid filesystem")
    assert run.supervised([helper]).out == "0\n"


def test_credentials_are_looked_up_anew(run: Runner, place: Place) -> None:
    """A thread that becomes the owner keeps its flag; one that stops being it is served."""
    code = (
        "import os, sys\n"
        "def flag():\n"
        "    fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NOATIME)\n"
        "    import fcntl; print(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME))\n"
        "flag(); os.seteuid(65534); flag(); os.seteuid(0); flag()\n"
    )
    shim = run.supervised(["/usr/bin/python3", "-c", code, str(place.file)], user=None)
    assert shim.out.split() == ["True", "False", "True"], shim.err
    assert shim.events("decision, fsuid") == [("kept", 0), ("cleared", 65534), ("kept", 0)]


def test_unmapped_owner_in_a_user_namespace(run: Runner, place: Place) -> None:
    """Every capability, and yet no power over an owner that is not mapped."""
    os.chown(place.file, 4711, 4711)
    argv = ["unshare", "-r", "dd", "iflag=noatime", f"if={place.file}", "status=none"]
    natively = run.native(argv)
    require("user namespaces", natively.stderr if "unshare" in natively.stderr else None)
    assert natively.returncode != 0
    shim = run.supervised(argv)
    assert (shim.status, shim.out) == (0, "content\n")
    assert shim.events("decision, reason, tries") == [("cleared", "refused by the kernel", 2)]


def test_mount_namespace_and_chroot(run: Runner, place: Place) -> None:
    """There an absolute path is another file than the supervisor would find by it."""
    root = place.path / "root"
    inner = Path(f"{root}{place.file}")  # the same path; outside it is a file of root's
    inner.parent.mkdir(parents=True)
    inner.write_text("inner\n")
    os.chown(inner, NOBODY, NOBODY)
    code = (
        "import os, sys, fcntl\n"
        "os.chroot(sys.argv[1]); os.setuid(65534)\n"
        "fd = os.open(sys.argv[2], os.O_RDONLY | os.O_NOATIME)\n"
        "print(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME))\n"
    )
    shim = run.supervised(["/usr/bin/python3", "-c", code, str(root), str(place.file)], user=None)
    assert shim.out == "True\n", shim.err
    assert shim.events("decision") == [("kept",)]


def test_term_is_passed_on(run: Runner) -> None:
    """`kill` of the PID one knows, flagshim's, ends the program as it chooses to end."""
    script = "trap 'exit 9' TERM; echo ready; while read x; do :; done"
    process = subprocess.Popen(
        run.command(["sh", "-c", script]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
    )
    with process:  # closes stdin at the latest, which ends the loop
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(timeout=SECONDS) == 9


def test_sigkill_of_the_program_in_the_middle_of_its_opens(
    build: Build, run: Runner, place: Place
) -> None:
    script = '"$@" & echo $!; wait $!; echo $?'
    storm = [build("storm"), "0", "1", "10000019", str(place.file)]
    command = run.command(["sh", "-c", script, "sh", *storm])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        wait_until(lambda: rows(run.trace, "SELECT count(*) FROM event")[0][0])
        os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=SECONDS)
    assert out == "137\n"
    assert process.returncode == 0, err


@pytest.mark.parametrize("options", [(), ("--except", "sh")])
def test_job_control(run: Runner, options: tuple[str, ...]) -> None:
    """^Z stops the job as its shell sees it, and `fg` has it go on; also if it is not traced."""
    argv = run.command(["sh", "-c", "echo ready; read x; echo done"], *options, user=None)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(REPOSITORY)
        os.execvp(
            "sh", ["sh", "-c", 'set -m; "$@"; echo status $?; fg; echo status $?', "sh", *argv]
        )
    try:
        output = read_until(terminal, b"ready")
        os.write(terminal, b"\x1a")
        output += read_until(terminal, b"status")
        os.write(terminal, b"\n")
        output += read_until(terminal, b"status 0")
    finally:
        os.close(terminal)  # hangs up, which ends the whole session
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    text = output.decode()
    stopped = 128 + signal.SIGTSTP, 128 + signal.SIGSTOP
    assert any(f"status {status}" in text for status in stopped), text
    assert "done" in text.split("status", 2)[1] + text.split("status", 2)[2], text
    assert "status 0" in text


def test_stop_and_continue_of_the_program_alone(build: Build, run: Runner, place: Place) -> None:
    """SIGSTOP really stops it: PTRACE_CONT out of a group-stop would let it run."""
    command = run.command([build("storm"), "0", "1", "10000019", str(place.file)])
    shim = run.last()
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as supervisor:
        try:
            wait_until(lambda: _count(shim) > 97)
            (storm,) = (pid for pid in children(supervisor.pid) if "storm" in program(pid))

            def stands_still() -> bool:
                before = _count(shim)
                time.sleep(0.2)  # long for who runs: it would make thousands of opens
                return _count(shim) == before and status_of(storm, "State")[0] in "tT"

            os.kill(storm, signal.SIGSTOP)
            wait_until(stands_still)
            stopped_at = _count(shim)
            os.kill(storm, signal.SIGCONT)
            wait_until(lambda: _count(shim) > stopped_at + 97)
            os.kill(storm, signal.SIGTERM)
            assert supervisor.wait(timeout=SECONDS) == -signal.SIGTERM
        finally:
            supervisor.kill()
    assert shim.events("count(*)", "errno IS NOT NULL") == [(0,)]
    assert shim.session("lost, seen - (SELECT count(*) FROM event)") == (0, 0)


def test_supervisor_killed(build: Build, run: Runner, place: Place) -> None:
    """EXITKILL: the program goes with it, and the trace is whole up to then."""
    argv = run.command([build("storm"), "2", "3", "1000000007", str(place.file)])
    process = subprocess.Popen(argv, cwd=REPOSITORY)
    shim = run.last()
    wait_until(lambda: _count(shim) > 1009)
    theirs = children(process.pid)
    process.kill()
    process.wait()
    try:  # nothing outlives its supervisor, but for what it takes to write the rest
        wait_until(lambda: all(map(has_ended, theirs)))
    finally:
        for (pid,) in shim.events("DISTINCT pid"):
            with contextlib.suppress(ProcessLookupError):
                if not has_ended(pid):
                    os.kill(pid, signal.SIGKILL)
    before = _count(shim)
    assert before > 1009
    assert shim.session("ended_ns, exit_status, seen") == (None, None, before)
    assert shim.events("count(*)") == [(before,)]


def _count(shim: Run) -> int:
    try:
        return shim.events("count(*)")[0][0]
    except Exception:  # not there yet
        return 0


def test_traced_already(run: Runner) -> None:
    """Under strace, a child of ours is strace's tracee: say so."""
    argv = ["strace", "-f", "-o", "/dev/null", *run.command(["true"], user=None)]
    result = subprocess.run(
        argv, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS
    )
    assert result.returncode == 125
    assert "traced by strace" in result.stderr


def test_io_uring_is_noticed(build: Build, way: Way) -> None:
    shim = way([build("uring")])
    if shim.status == 3:
        pytest.skip("no io_uring here")
    assert rows(shim.trace, "SELECT kind, program, count FROM blind_spot") == [
        ("io_uring", Path(build("uring")).name, 1)
    ]


def test_x32_is_noticed(build: Build, way: Way, place: Place) -> None:
    shim = way([build("x32"), str(place.file)])
    assert rows(shim.trace, "SELECT kind, count FROM blind_spot") == [("x32", 1)]
    assert shim.events() == []


COUNT_SIGNALS = """
import os, select, signal
read_end, write_end = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(write_end)  # a byte for each delivery, even of the same signal
signal.signal(signal.SIGTERM, lambda *_: None)
print("ready", flush=True)
count = 0
while select.select([read_end], [], [], 20 if count == 0 else 1)[0]:
    count += len(os.read(read_end, 99))
print(count)
"""


@pytest.mark.parametrize("to_group", [True, False])
def test_signal_arrives_once(run: Runner, to_group: bool) -> None:
    """`kill %1` and timeout(1) send to the group, which CMD is in; then it gets it without us."""
    process = subprocess.Popen(
        run.command(["/usr/bin/python3", "-c", COUNT_SIGNALS], user=None),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (os.killpg if to_group else os.kill)(process.pid, signal.SIGTERM)
        assert process.stdout.read() == b"1\n"
        assert process.wait(timeout=SECONDS) == 0


def test_program_is_the_one_after_exec(run: Runner, place: Place) -> None:
    code = (
        "import os, sys; os.open(sys.argv[1], os.O_RDONLY | os.O_NOATIME);"
        "os.execlp('dd', 'dd', 'iflag=noatime', f'if={sys.argv[1]}', 'of=/dev/null')"
    )
    shim = run.supervised(["/usr/bin/python3", "-c", code, str(place.file)])
    assert shim.status == 0
    assert [row[0][:2] for row in shim.events("program")] == ["py", "dd"]
