"""A wrapper in the place of QEMU: for shell scripts, init scripts, runit, supervisord, libvirt.

Each test is made with QEMU itself and with what `flagshim wrap` writes; nothing in it may differ.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flagshim.probes import reason_notify_unavailable
from tests.processes import everybody, program, role_of
from tests.support import REPOSITORY, flagshim_command, read_until, require, rows

from .machine import BARE, SECONDS, wait_for_end, wait_until
from .monitor import monitor
from .requirements import obstacle
from .services import Manager, runit_service, supervisord_service

QEMU = Path("/usr/bin/qemu-system-x86_64")
TRACE = "wrapped.db"


@pytest.fixture(autouse=True)
def _can_boot() -> None:
    require("guest", obstacle())


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["native", "ptrace", "notify"])
def qemu(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """QEMU, or a wrapper of it with one of the engines, whose trace is place / TRACE."""
    if request.param == "native":
        yield QEMU
        return
    if request.param == "notify":
        require("notify", reason_notify_unavailable())
    wrapper = place / "qemu"
    words = ["wrap", str(QEMU), "-o", str(wrapper), "--trace", str(place / TRACE),
             "--engine", request.param]  # fmt: skip
    subprocess.run(
        [*flagshim_command(), *words], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    yield wrapper
    if (place / TRACE).exists():
        wait_until(lambda: not rows(place / TRACE, "SELECT 1 FROM session WHERE ended_ns IS NULL"),
                   "every helper ends with its QEMU")  # fmt: skip
        writes = f"writes {place / TRACE}"  # files beside it, until its end
        wait_until(lambda: not any(role_of(pid).endswith(writes) for pid in everybody()),
                   "so does every keeper")  # fmt: skip
        assert set(rows(place / TRACE, "SELECT engine FROM session")) == {(request.param,)}


def machine(qemu: Path, place: Path, *options: str) -> list[str]:
    """A command for a machine that does not run, with its monitor at place / qmp."""
    return [str(qemu), *BARE[1:], "-qmp", f"unix:{place}/qmp,server=on,wait=off", *options]


def quit_by_monitor(place: Path) -> None:
    with monitor(place / "qmp") as qmp:
        qmp.ask("quit")
        qmp.wait_for("SHUTDOWN")


def until_ready(place: Path) -> None:
    """Wait until QEMU answers, and so has its signal handlers."""
    with monitor(place / "qmp") as qmp:
        qmp.ask("query-status")


# --- shell scripts ----------------------------------------------------------------------


@contextlib.contextmanager
def script(text: str, argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A shell script that gets a command as its arguments; its output is ours to read."""
    process = subprocess.Popen(
        ["sh", "-c", text, "script", *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=SECONDS)


IN_BACKGROUND = '"$@" & pid=$!; echo "pid $pid."; wait $pid; echo "status $?."'


def background_pid(process: subprocess.Popen[bytes], name: str = QEMU.name) -> int:
    assert process.stdout is not None
    said = read_until(process.stdout.fileno(), b".\n")
    pid = int(said.decode().split()[1].rstrip("."))
    wait_until(lambda: program(pid).endswith(f"/{name}"), f"$! is {name}")
    return pid


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, 137)])
def test_shell_waits_for_its_job(
    qemu: Path, place: Path, number: signal.Signals, status: int
) -> None:
    with script(IN_BACKGROUND, machine(qemu, place)) as process:
        pid = background_pid(process)
        assert os.getpgid(pid) == process.pid
        until_ready(place)
        os.kill(pid, number)
        said = process.communicate(timeout=SECONDS)[0].decode()
    assert said.splitlines()[-1] == f"status {status}."
    assert ("terminating on signal 15" in said) == (status == 0)
    assert process.returncode == 0


def test_shell_sees_qemu_quit(qemu: Path, place: Path) -> None:
    with script('"$@"; echo "status $?."', machine(qemu, place)) as process:
        quit_by_monitor(place)
        assert process.communicate(timeout=SECONDS)[0] == b"status 0.\n"


def test_shell_sees_qemu_fail(qemu: Path, place: Path) -> None:
    with script('"$@"; echo "status $?."', machine(qemu, place, "-nonesuch")) as process:
        said = process.communicate(timeout=SECONDS)[0].decode()
    assert said == f"{QEMU.name}: -nonesuch: invalid option\nstatus 1.\n"


def test_trap_ends_the_machine(qemu: Path, place: Path) -> None:
    trap = "trap 'kill $pid; wait $pid; echo \"status $?.\"; exit 3' TERM; "
    text = '"$@" & pid=$!; ' + trap + 'echo "pid $pid."; wait'
    with script(text, machine(qemu, place)) as process:
        pid = background_pid(process)
        until_ready(place)
        process.terminate()
        said = process.communicate(timeout=SECONDS)[0].decode()
        assert said.splitlines()[-1] == "status 0."
        assert process.returncode == 3
        wait_for_end(pid)


def test_timeout_ends_the_machine(qemu: Path, place: Path) -> None:
    argv = ["timeout", "--preserve-status", "1009", *machine(qemu, place)]
    with script(IN_BACKGROUND, argv) as process:
        pid = background_pid(process, "timeout")
        until_ready(place)
        os.kill(pid, signal.SIGALRM)  # what timeout(1) has itself told by when the time is up
        said = process.communicate(timeout=SECONDS)[0].decode()
    assert re.fullmatch(
        rf"\S+: terminating on signal 15 from pid {pid} \(timeout\)\nstatus 0\.\n", said
    )


# --- init scripts -----------------------------------------------------------------------


def test_daemon_of_an_init_script(qemu: Path, place: Path) -> None:
    """start-stop-daemon(8): by the pidfile, and by the program that has that PID."""
    pidfile = place / "pid"
    which = ["--pidfile", str(pidfile), "--exec", str(QEMU)]

    def daemon(*words: str) -> int:
        command = ["start-stop-daemon", "--quiet", *words]
        return subprocess.run(command, check=False, timeout=SECONDS).returncode

    options = machine(qemu, place, "-daemonize", "-pidfile", str(pidfile))[1:]
    start = ["--start", *which, "--startas", str(qemu), "--", *options]
    assert daemon("--status", *which) == 3, "not running"
    assert daemon(*start) == 0
    pid = int(pidfile.read_text())
    assert os.readlink(f"/proc/{pid}/exe") == str(QEMU)
    assert os.getsid(pid) not in (os.getsid(0), pid), "QEMU forks again after setsid"
    try:
        assert daemon("--status", *which) == 0
        assert daemon(*start) == 1, "it runs already"
        until_ready(place)
    finally:
        assert daemon("--stop", "--retry", f"TERM/{SECONDS:.0f}/KILL", *which) == 0
    assert not os.path.exists(f"/proc/{pid}/exe")
    assert not pidfile.exists(), "QEMU removes it when it ends of itself"
    assert daemon("--status", *which) == 3


# --- service managers -------------------------------------------------------------------


@pytest.fixture(params=[runit_service, supervisord_service], ids=["runit", "supervisord"])
def service(request: pytest.FixtureRequest, qemu: Path, place: Path) -> Iterator[Manager]:
    """A machine that is managed, up and answering."""
    folder = place / "service"
    folder.mkdir()
    with request.param(machine(qemu, place), folder) as manager:
        until_ready(place)
        yield manager


def qemus_pid(service: Manager, before: int | None = None) -> int:
    """The PID that the manager names, once it is that of a QEMU other than before."""

    def found() -> bool:
        pid = service.pid()
        return pid is not None and pid != before and program(pid) == str(QEMU)

    wait_until(found, "the manager's PID is QEMU's")
    pid = service.pid()
    assert pid is not None
    return pid


def test_manager_knows_qemu(service: Manager, place: Path) -> None:
    pid = qemus_pid(service)
    with monitor(place / "qmp") as qmp:
        assert qmp.ask("query-status")
    service.stop()
    assert service.pid() is None
    assert not os.path.exists(f"/proc/{pid}")
    assert service.ends() == ["exit 0"]


def test_manager_restarts_qemu(service: Manager, place: Path) -> None:
    pid = qemus_pid(service)
    service.restart()
    second = qemus_pid(service, before=pid)
    assert not os.path.exists(f"/proc/{pid}")
    until_ready(place)
    service.stop()
    service.start()
    qemus_pid(service, before=second)
    until_ready(place)
    service.stop()
    assert service.ends() == ["exit 0"] * 3


def test_manager_sees_qemu_die(service: Manager, place: Path) -> None:
    """It learns of the signal, and starts QEMU anew."""
    pid = qemus_pid(service)
    os.kill(pid, signal.SIGKILL)
    qemus_pid(service, before=pid)
    until_ready(place)
    service.stop()
    assert service.ends() == ["signal 9", "exit 0"]


def test_manager_sees_qemu_quit(service: Manager, place: Path) -> None:
    pid = qemus_pid(service)
    quit_by_monitor(place)
    wait_until(lambda: bool(service.ends()), "the manager learns of it")
    assert service.ends()[0] == "exit 0"
    if service.restarts_at_success:  # so that it is not stopped before it is anything
        qemus_pid(service, before=pid)
        until_ready(place)


# --- probes -----------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [("--help",), ("-version",), ("-machine", "help"),
                                   ("-cpu", "help"), ("-device", "help"), ("-audio", "help")],
                         ids="".join)  # fmt: skip
def test_probe(qemu: Path, probe: tuple[str, ...]) -> None:
    """What libvirt and scripts ask before they start a machine: byte for byte."""

    def answer(command: Path) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [command, *probe], stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=SECONDS,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    natively = answer(QEMU)
    assert len(natively[1]) > 50
    assert answer(qemu) == natively
