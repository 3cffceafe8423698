"""QEMU in the ways that libvirt, init scripts and people run it: as if flagshim were not there.

Most of it is about a machine that does not run (-S) and done natively, under `flagshim run` and
as `flagshim exec`, with each of both engines that start programs everywhere. What is booted is
booted under flagshim only, and the trace tells what became of the share's files.
"""

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagshim.probes import reason_notify_unavailable
from flagshim.tracee import has_ended
from tests.processes import children, name_of, role_of
from tests.support import REPOSITORY, read_until, require

from .image import Image
from .machine import (
    BARE,
    DENY,
    DENY_ALL,
    SECONDS,
    Machine,
    Way,
    is_qemu,
    started,
    status_of,
    wait_for_end,
    wait_for_session,
    wait_until,
)
from .monitor import Monitor, monitor
from .refusals import Trace, by_file
from .requirements import obstacle
from .share import FILES, SECOND_FILES, make_second_share
from .vm import TIMEOUT, Guest, StepResult, qemu_command, report_on

NOBODY = 65534
BOOTED_FILES = {Way.RUN: 211, Way.EXEC: FILES, Way.EXEC_NOTIFY: FILES}
"""How many files the guest reads one by one."""
JAILED_FILES = 307


@pytest.fixture(autouse=True)
def _can_boot() -> None:
    require("guest", obstacle())


@pytest.fixture(params=[way for way in Way if way is not Way.NATIVE])
def way(request: pytest.FixtureRequest) -> Way:
    """Each way to start a QEMU under flagshim."""
    supervised = Way(request.param)
    if supervised.engine == "notify":
        require("notify", reason_notify_unavailable())
    return supervised


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short path (sun_path is 108 bytes) to a folder that belongs to QEMU's user."""
    path = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    path.chmod(0o755)
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


# --- the monitor ------------------------------------------------------------------------


def over_connected_socket(way: Way, trace: Path) -> tuple[object, ...]:
    ours, qemus = socket.socketpair()
    number = qemus.fileno()
    argv = [*BARE, "-chardev", f"socket,id=mon,fd={number}", "-mon", "chardev=mon,mode=control"]
    with ours, started(way, argv, trace, pass_fds=[number]) as machine:
        qemus.close()
        with monitor(ours) as qmp:
            account: list[object] = [qmp.ask("query-status")]
            qmp.ask("cont")
            qmp.wait_for("RESUME")
            account.append(qmp.ask("query-status"))
            qmp.ask("system_powerdown")
            account.append(qmp.wait_for("POWERDOWN"))
            account.append(qmp.typed("info name"))
            qmp.ask("quit")
            account.append(qmp.wait_for("SHUTDOWN"))
        return (*account, *machine.ended())


def test_qmp_over_a_socket_of_the_callers(way: Way, place: Path) -> None:
    natively = over_connected_socket(Way.NATIVE, place / "none")
    assert natively[-3:] == (0, "", "")
    assert over_connected_socket(way, place / "trace.db") == natively


def test_monitor_on_pipes(way: Way, place: Path) -> None:
    """-monitor stdio, with a command that comes late and one that ends it."""

    def session(way: Way) -> tuple[int, str, str]:
        with started(way, [*BARE, "-monitor", "stdio"], place / "trace.db") as machine:
            assert machine.process.stdin is not None
            assert machine.process.stdout is not None
            said = read_until(machine.process.stdout.fileno(), b"(qemu) ")
            machine.process.stdin.write("info status\n")
            machine.process.stdin.flush()
            said += read_until(machine.process.stdout.fileno(), b"VM status")
            machine.process.stdin.write("quit\n")
            machine.process.stdin.flush()
            status, rest, err = machine.ended()
            return status, said.decode() + rest, err

    natively = session(Way.NATIVE)
    assert "VM status: paused (prelaunch)" in natively[1]
    assert session(way) == natively


@pytest.mark.parametrize("end", ["quit\r", "\x03"], ids=["quit", "interrupt"])
def test_monitor_on_a_terminal(way: Way, end: str, place: Path) -> None:
    """QEMU sets the terminal up, gives it back as it was, and ^C is for QEMU."""

    def session(way: Way) -> tuple[str, int, bool]:
        argv = [*way.prefix(place / "trace.db"), *BARE, "-monitor", "stdio"]
        # stty compares what QEMU found with what it left behind.
        script = (
            'trap : INT; was=$(stty -g); "$@"; echo "status $?";'
            '[ "$(stty -g)" = "$was" ] && echo same'
        )
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(REPOSITORY)
            os.execvp("sh", ["sh", "-c", script, "sh", *argv])
        try:
            said = read_until(terminal, b"(qemu) ")
            os.write(terminal, b"info status\r")  # it prompts before it is ready for ^C
            said += read_until(terminal, b"VM status")
            os.write(terminal, end.encode())
            said += read_until(terminal, b"status ")
            said += read_until(terminal, None)
        finally:
            os.close(terminal)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        text = said.decode()
        found = re.search(r"status (\d+)", text)
        assert found, text
        signalled = re.findall(r"terminating on signal \d+", text)
        return " ".join(signalled), int(found[1]), "same" in text

    natively = session(Way.NATIVE)
    assert natively == ("terminating on signal 2" if end == "\x03" else "", 0, True)
    assert session(way) == natively


# --- signals ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_process_that_was_started(
    way: Way, number: signal.Signals, place: Path
) -> None:
    """Of `run` that is flagshim, which passes it on; of `exec` it is QEMU."""

    def end(way: Way) -> tuple[int, str, str]:
        with running(way, place) as (machine, qmp):
            machine.process.send_signal(number)
            account = qmp.wait_for("SHUTDOWN")
            assert account == {"guest": False, "reason": "host-signal"}
            status, out, err = machine.ended()
            return status, out, re.sub(r" from pid \d+ \(.*\)", "", err)

    natively = end(Way.NATIVE)
    assert natively == (0, "", f"qemu-system-x86_64: terminating on signal {number:d}\n")
    assert end(way) == natively


def test_who_sent_the_signal_is_known(way: Way, place: Path) -> None:
    """QEMU names the sender: of a signal to QEMU itself it is the real one."""
    with running(way, place) as (machine, _):
        os.kill(machine.pid, signal.SIGTERM)
        status, _, err = machine.ended()
    assert status == 0
    assert f"terminating on signal 15 from pid {os.getpid()} (" in err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_fatal_signal_to_qemu(way: Way, number: signal.Signals, place: Path) -> None:
    with running(way, place) as (machine, _):
        os.kill(machine.pid, number)
        assert machine.ended() == (-number, "", "")


@pytest.mark.parametrize(
    "wrong", [("-machine", "nonesuch"), ("-drive", "file=/nonesuch"), ("-nonesuch",)]
)
def test_a_mistake_in_the_command(way: Way, wrong: tuple[str, ...], place: Path) -> None:
    def end(way: Way) -> tuple[int, str, str]:
        with started(way, [*BARE, *wrong], place / "trace.db") as machine:
            return machine.ended()

    natively = end(Way.NATIVE)
    assert natively[0] == 1
    assert end(way) == natively


@contextlib.contextmanager
def running(
    way: Way, place: Path, *options: str, user: str | None = None, **how: object
) -> Iterator[tuple[Machine, Monitor]]:
    """A machine that does not run, and its monitor."""
    path = place / f"{way}.qmp"
    argv = [*BARE, "-qmp", f"unix:{path},server=on,wait=off", *options]
    with started(way, argv, place / "trace.db", user, **how) as machine, monitor(path) as qmp:
        yield machine, qmp


# --- what QEMU makes of itself ----------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-runas", "nobody"), ("-sandbox", DENY_ALL),
                                     ("-chroot", "JAIL", "-sandbox", DENY_ALL),
                                     ("-chroot", "JAIL", "-runas", "nobody", "-sandbox", DENY)],
                         ids=["plain", "runas", "sandbox", "chroot", "all"])  # fmt: skip
def test_identity(way: Way, options: tuple[str, ...], place: Path) -> None:
    """User, groups, capabilities, root, threads and their names are those it chose."""
    jail = place / "jail"
    jail.mkdir()
    words = [str(jail) if word == "JAIL" else word for word in options]
    words += ["-name", "guest=vm,debug-threads=on"]

    def identity(way: Way) -> dict[str, object]:
        with running(way, place, *words) as (machine, qmp):
            pid = machine.pid
            fields = ("Uid", "Gid", "Groups", "CapEff", "SigBlk", "SigIgn", "SigCgt", "Umask")
            found: dict[str, object] = dict(status_of(pid, *fields))
            names = {name_of(int(tid)) for tid in os.listdir(f"/proc/{pid}/task")}
            # A worker comes and goes as there is work, and call_rcu is there before it is known
            # that threads are to have names.
            found["threads"] = names - {"worker", "call_rcu", ""}
            found["root"] = os.readlink(f"/proc/{pid}/root")
            found["cwd"] = os.readlink(f"/proc/{pid}/cwd")
            found["own filters"] = filters(pid) - (way is not Way.NATIVE)
            found["no new privileges"] = status_of(pid, "NoNewPrivs")
            found["command line"] = (
                Path(f"/proc/{pid}/cmdline").read_bytes().replace(f"{way}.qmp".encode(), b"qmp")
            )
            qmp.ask("quit")
            found["end"] = machine.ended()
            return found

    natively = identity(Way.NATIVE)
    assert natively["end"] == (0, "", "")
    assert "CPU 0/TCG" in str(natively["threads"])
    assert ("-runas" in options) == (str(natively["Uid"]).split()[0] == str(NOBODY))
    assert ("-sandbox" in options) == bool(natively["own filters"])
    assert identity(way) == natively


@pytest.mark.parametrize("options", [("-daemonize",), ("-runas", "nobody")])
def test_a_sandbox_that_kills(way: Way, options: tuple[str, ...], place: Path) -> None:
    """QEMU 7.2 does not survive its own sandbox with these, and so it does not here."""

    def end(way: Way) -> tuple[int, str, str]:
        argv = [*BARE, "-sandbox", DENY_ALL, *options]
        with started(way, argv, place / "trace.db") as machine:
            return machine.ended()

    natively = end(Way.NATIVE)
    assert natively == (-signal.SIGSYS, "", "")
    assert end(way) == natively


def filters(pid: int) -> int:
    return int(status_of(pid, "Seccomp_filters")["Seccomp_filters"])


def test_daemon(way: Way, place: Path) -> None:
    """The caller goes on (but after the daemon, under `run`); the pidfile names QEMU."""
    pidfile, path = place / "pid", place / "qmp"
    argv = [*BARE, "-daemonize", "-pidfile", str(pidfile), "-qmp",
            f"unix:{path},server=on,wait=off"]  # fmt: skip
    with started(way, argv, place / "trace.db") as machine, monitor(path) as qmp:
        # With the pipes: a supervisor that held them would keep the caller from reading on.
        assert machine.process.stdout is not None
        assert read_until(machine.process.stdout.fileno(), None) == b""
        pid = int(pidfile.read_text())
        assert is_qemu(pid)
        assert qmp.ask("query-status")
        if way.command == "exec":
            assert machine.process.wait(SECONDS) == 0
        else:
            assert machine.process.poll() is None
        if way is Way.RUN_NOTIFY:  # which knows of calls, not of processes: it leaves QEMU alone
            run = machine.process.pid
            wait_until(lambda: all(role_of(pid) or has_ended(pid) for pid in children(run)),
                       "CMD has ended")  # fmt: skip
            machine.process.terminate()
            assert machine.process.wait(SECONDS) == 0
            assert qmp.ask("query-status")
        # Under `run` people know flagshim's PID, under `exec` the pidfile's.
        os.kill(machine.process.pid if way is Way.RUN else pid, signal.SIGTERM)
        qmp.wait_for("SHUTDOWN")
        wait_for_end(pid)
        assert machine.ended() == (0, "", "")
    assert not pidfile.exists(), "QEMU removes it when it ends of itself"


# --- as libvirt does it -----------------------------------------------------------------


def test_probing_for_capabilities(way: Way, place: Path) -> None:
    """A machine without a machine, daemonized and asked for all it can do (qemu_process.c)."""

    def answers(way: Way) -> list[object]:
        path, pidfile = place / f"{way}.qmp", place / "pid"
        argv = ["qemu-system-x86_64", "-S", "-no-user-config", "-nodefaults", "-nographic",
                "-machine", "none,accel=tcg", "-chardev",
                f"socket,id=monitor,path={path},server=on,wait=off", "-mon",
                "chardev=monitor,mode=control", "-pidfile", str(pidfile), "-daemonize"]  # fmt: skip
        with started(way, argv, place / "trace.db", "nobody") as machine, monitor(path) as qmp:
            pid = int(pidfile.read_text())
            asked = ("query-version", "query-qmp-schema", "query-machines", "query-kvm",
                     "query-command-line-options")  # fmt: skip
            found = [qmp.ask(question) for question in asked]
            os.kill(pid, signal.SIGTERM)
            wait_for_end(pid)
            return [*found, machine.ended()]

    natively = answers(Way.NATIVE)
    assert len(str(natively)) > 100_000
    assert answers(way) == natively


@pytest.mark.parametrize("way", BOOTED_FILES, indirect=True)
def test_a_machine_of_libvirts(way: Way, place: Path, guest_image: Image, guest_share: Path,
                               second_share: Path) -> None:  # fmt: skip
    """Pipes, a listening socket of the caller's, a process group of its own, two shares."""
    console = place / "console"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(place / "qmp"))
    listening.listen(1)
    options = ("-S", "-name", "guest=vm,debug-threads=on", "-msg", "timestamp=on",
               "-chardev", f"socket,id=charmonitor,fd={listening.fileno()},server=on,wait=off",
               "-mon", "chardev=charmonitor,id=monitor,mode=control", "-sandbox", DENY_ALL,
               "-boot", "strict=on")  # fmt: skip
    guest = Guest(guest_image, guest_share, user=None, second=second_share,
                  files=BOOTED_FILES[way], serial=f"file:{console}", extra=options)  # fmt: skip
    how = {"pass_fds": [listening.fileno()], "process_group": 0}
    with started(way, qemu_command(guest), place / "trace.db", "nobody", **how) as machine:
        listening.close()
        with monitor(place / "qmp") as qmp:
            pid = machine.pid
            assert os.getpgid(pid) == machine.process.pid
            assert (pid == machine.process.pid) == (way.command == "exec")
            assert qmp.ask("query-status") == {
                "running": False, "singlestep": False, "status": "prelaunch"
            }  # fmt: skip
            qmp.ask("cont")
            ended = qmp.wait_for("SHUTDOWN", TIMEOUT)
            assert ended == {"guest": True, "reason": "guest-shutdown"}
        assert machine.ended() == (0, "", "")
    passed_in_the_guest(console)
    both_shares_were_served(place / "trace.db", guest_share, second_share, BOOTED_FILES[way])


@pytest.fixture(scope="module")
def second_share() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="flagshim-share-") as folder:
        make_second_share(Path(folder))
        yield Path(folder)


def passed_in_the_guest(console: Path) -> None:
    text = console.read_text(errors="replace").replace("\r", "")
    reported, steps = report_on(text)
    assert reported, text
    assert [name for name, step in steps.items() if not step.ok] == [], text
    assert steps["read-second"].detail == f"{SECOND_FILES}/{SECOND_FILES}"


def both_shares_were_served(trace_file: Path, first: Path, second: Path, files: int) -> None:
    """Each file was opened once, without the flag, and QEMU saw no refusal."""
    trace = Trace.read(trace_file)
    opened = by_file(trace.cleared, "openat")
    expected = {str(first / f"files/{at:05}"): 1 for at in range(files)}
    expected |= {str(second / f"second/{at:03}"): 1 for at in range(SECOND_FILES)}
    assert {name: opened[name] for name in expected} == expected
    assert by_file(trace.cleared, "fcntl") == opened
    assert trace.refused == []
    assert (trace.lost, trace.exit_status) == (0, 0)


# --- as an init script does it ----------------------------------------------------------


def test_a_daemon_in_a_jail(
    place: Path, guest_image: Image, guest_share: Path, second_share: Path
) -> None:
    """Everything at once: -daemonize -pidfile -runas -chroot -sandbox, and two shares."""
    jail = place / "jail"
    jail.mkdir()

    def steps(way: Way) -> dict[str, StepResult]:
        console, pidfile, path = place / f"{way}.log", place / f"{way}.pid", place / f"{way}.qmp"
        options = ("-daemonize", "-pidfile", str(pidfile), "-chroot", str(jail),
                   "-runas", "nobody", "-sandbox", "on,obsolete=deny,resourcecontrol=deny",
                   "-qmp", f"unix:{path},server=on,wait=off", "-S")  # fmt: skip
        guest = Guest(guest_image, guest_share, user=None, second=second_share,
                      files=JAILED_FILES, serial=f"file:{console}", extra=options)  # fmt: skip
        trace = place / f"{way}.db"
        with started(way, qemu_command(guest), trace) as machine:
            assert machine.process.communicate(timeout=SECONDS) == ("", "")
            assert machine.process.returncode == 0
            pid = int(pidfile.read_text())
            with monitor(path) as qmp:
                assert is_qemu(pid)
                assert os.readlink(f"/proc/{pid}/root") == str(jail)
                assert set(status_of(pid, "Uid")["Uid"].split()) == {str(NOBODY)}
                qmp.ask("cont")
                assert qmp.wait_for("SHUTDOWN", TIMEOUT)["reason"] == "guest-shutdown"
            wait_for_end(pid)
            if way is not Way.NATIVE:
                wait_for_session(trace)
        reported, found = report_on(console.read_text(errors="replace").replace("\r", ""))
        assert reported
        return found

    natively = steps(Way.NATIVE)
    # What needs /proc/self/fd fails in any jail without it (fgetxattrat_nofollow() in QEMU's
    # hw/9pfs/9p-util-linux.c), and copying up does.
    assert not natively["new-file"].ok
    assert natively["read-lower"] == StepResult(True, f"{JAILED_FILES}/{JAILED_FILES}")
    for way in (Way.EXEC, Way.EXEC_NOTIFY):
        assert steps(way) == natively
        both_shares_were_served(place / f"{way}.db", guest_share, second_share, JAILED_FILES)


# --- snapshots --------------------------------------------------------------------------


def test_a_snapshot_is_saved_and_restored(
    place: Path, guest_image: Image, guest_share: Path
) -> None:
    """A guest that waits before its first mount is saved; another QEMU goes on with it."""
    disk = place / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    os.chown(disk, NOBODY, NOBODY)
    options = ("-drive", f"file={disk},if=none,id=disk", "-qmp",
               f"unix:{place}/qmp,server=on,wait=off")  # fmt: skip
    guest = Guest(guest_image, guest_share, user=None, files=103, words=("flagshim.wait=1",),
                  extra=options)  # fmt: skip
    first, second = place / "first.db", place / "second.db"
    with started(Way.EXEC, qemu_command(guest), first, "nobody") as machine:
        assert machine.process.stdout is not None
        read_until(machine.process.stdout.fileno(), b"FLAGSHIM-READY", TIMEOUT)
        with monitor(place / "qmp") as qmp:
            assert qmp.typed("savevm halfway") == ""
            assert "halfway" in qmp.typed("info snapshots")
            assert qmp.typed("loadvm halfway") == "", "and into the same process"
            qmp.ask("quit")
        assert machine.ended()[0] == 0
    assert Trace.read(first).events == ()
    command = [*qemu_command(guest), "-loadvm", "halfway"]
    with started(Way.EXEC, command, second, "nobody") as machine:
        out, err = machine.process.communicate("\n", timeout=TIMEOUT)
        assert (machine.process.returncode, err) == (0, "")
        wait_for_session(second)
    reported, steps = report_on(out.replace("\r", ""))
    assert reported, out
    assert [name for name, step in steps.items() if not step.ok] == [], out
    assert "Linux version" not in out
    opened = by_file(Trace.read(second).cleared, "openat")
    expected = {str(guest_share / f"files/{at:05}"): 1 for at in range(103)}
    assert {name: opened[name] for name in expected} == expected
