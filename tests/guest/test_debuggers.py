"""Under the notify engine a guest at work may be debugged, and a supervisor of it killed.

The QEMU that needs flagshim, booted once each way: gdb stops it in the middle of the guest's
reads, strace looks on, a supervisor is killed, and the guest notices nothing of it.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagshim.probes import reason_notify_unavailable
from tests.support import read_until, require, rows

from .image import Image
from .machine import SECONDS, Way, started, status_of, supervisors_of, wait_until
from .monitor import Monitor, monitor
from .refusals import Trace, by_file, count_asked
from .requirements import unpatched_obstacle
from .share import FILES
from .vm import TIMEOUT, Guest, qemu_command, report_on, unpatched_qemu

pytestmark = pytest.mark.unpatched

READS_A_SECOND = 307
"""What QEMU allows the guest, so that it is at its reads for as long as this takes."""
HITS = 7
"""How often gdb sees its breakpoint."""
CALLS = 11
"""How many calls with O_NOATIME strace sees at least."""
MORE = 13
"""How many files the guest opens after that, before a supervisor is killed."""


@pytest.fixture(autouse=True)
def _can_debug() -> None:
    require("unpatched", unpatched_obstacle())
    require("notify", reason_notify_unavailable())


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that QEMU's user can have its monitor's socket in."""
    path = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("way", [Way.RUN_NOTIFY, Way.EXEC_NOTIFY])
def test_debugged_and_bereaved(
    way: Way, place: Path, guest_image: Image, guest_share: Path
) -> None:
    trace_file, console, path = place / "trace.db", place / "console", place / "qmp"
    guest = Guest(
        guest_image, guest_share, qemu=unpatched_qemu(), user=None, serial=f"file:{console}",
        fsdev=(f"throttling.iops-read={READS_A_SECOND}",),
        extra=("-S", "-qmp", f"unix:{path},server=on,wait=off"),
    )  # fmt: skip
    with started(way, qemu_command(guest), trace_file, "nobody") as machine:
        with monitor(path) as qmp:
            pid = machine.pid
            assert stopped_by_gdb(pid, qmp) == HITS
            watched_by_strace(pid, qmp, place / "log")
            before = len(reads(trace_file, guest_share))
            assert HITS < before < FILES - MORE, "the guest is in the middle of its reads"
            qmp.ask("cont")
            wait_until(lambda: len(reads(trace_file, guest_share)) >= before + MORE, "it reads on")
            killed, killed_ns = supervisors_of(pid), time.time_ns()
            for supervisor in killed:  # the one that receives calls, and one in reserve
                os.kill(supervisor, signal.SIGKILL)
            ended = qmp.wait_for("SHUTDOWN", TIMEOUT)
            assert ended == {"guest": True, "reason": "guest-shutdown"}
        assert machine.ended() == (0, "", "")
    reported, steps = report_on(console.read_text(errors="replace").replace("\r", ""))
    assert reported
    assert [step for step in steps.items() if not step[1].ok] == []
    assert steps["read-lower"].detail == f"{FILES}/{FILES}"

    trace = Trace.read(trace_file)
    assert by_file(trace.cleared, "fcntl") == by_file(trace.cleared, "openat")
    assert (trace.refused, trace.lost, trace.exit_status) == ([], 0, 0)
    assert len(trace.events) == len(trace.cleared)
    times = reads(trace_file, guest_share)
    assert len(times) == FILES, "each file once"
    assert times[0] < killed_ns < times[-1]
    assert killed
    troubles = rows(trace_file, "SELECT text FROM trouble ORDER BY text")
    assert [text.partition(";")[0] for (text,) in troubles] == sorted(
        f"supervisor {supervisor} was killed by signal 9" for supervisor in killed
    )


def reads(trace: Path, share: Path) -> list[int]:
    """When the guest's files were opened that it reads one by one."""
    query = "SELECT time_ns FROM event WHERE syscall = 'openat' AND resolved GLOB '{}' ORDER BY 1"
    return [at for (at,) in rows(trace, query.format(f"{share}/files/*"))]


def stopped_by_gdb(pid: int, qmp: Monitor) -> int:
    """Let a guest go while gdb waits for opens with O_NOATIME; return how many it has seen.

    The guest is stopped again when gdb has left QEMU.
    """
    words = [
        "set debuginfod enabled off",
        "handle all nostop noprint pass",
        f"break openat64 if ($rdx & {os.O_NOATIME}) != 0",
        "shell echo attached.",
        "continue",
        f"continue {HITS - 1}",
        "info breakpoints",
        "detach",
        "shell echo detached.",
    ]
    command = ["gdb", "-nx", "-batch", "-p", str(pid)]
    for word in words:
        command += ["-ex", word]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as gdb:
        try:
            assert gdb.stdout is not None
            said = read_until(gdb.stdout.fileno(), b"attached.\n", SECONDS)
            assert status_of(pid, "TracerPid")["TracerPid"] == str(gdb.pid)
            qmp.ask("cont")
            said += read_until(gdb.stdout.fileno(), b"detached.\n", SECONDS)
            qmp.ask("stop")
            assert gdb.wait(SECONDS) == 0
        finally:
            gdb.kill()
    assert status_of(pid, "TracerPid")["TracerPid"] == "0"
    found = re.search(rb"breakpoint already hit (\d+) times", said)
    assert found, said
    return int(found[1])


def watched_by_strace(pid: int, qmp: Monitor, log: Path) -> None:
    """Let a guest go on while strace sees QEMU ask for O_NOATIME, and get what it asks for."""
    what = ("-e", "trace=openat,fcntl", "-e", "status=!unfinished")
    with subprocess.Popen(
        ["strace", "-f", *what, "-o", log, "-p", str(pid)], stderr=subprocess.PIPE
    ) as strace:
        try:
            assert strace.stderr is not None
            read_until(strace.stderr.fileno(), b"attached", SECONDS)
            qmp.ask("cont")
            wait_until(lambda: count_asked(log).all >= CALLS, "strace sees the guest's opens")
            qmp.ask("stop")
            strace.terminate()
            strace.communicate(timeout=SECONDS)
        finally:
            strace.kill()
    assert status_of(pid, "TracerPid")["TracerPid"] == "0"
    assert count_asked(log).refused == 0
