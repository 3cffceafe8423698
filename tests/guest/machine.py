"""A QEMU that somebody starts and talks to: natively, by `flagshim run`, by `flagshim exec`."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from tests.processes import children, everybody, program, role_of
from tests.support import HANGS, REPOSITORY, flagshim_command, rows

from .vm import user_prefix

MARK = "FLAGSHIM_TEST_MACHINE"
"""A variable of the environment by which a daemon is found again."""

SECONDS = HANGS
"""How long anything may take that needs no guest."""

DENY_ALL = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
DENY = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
"""What a QEMU can have that changes its user itself."""
BARE = (
    "qemu-system-x86_64", "-accel", "tcg", "-m", "32M",
    "-nodefaults", "-no-user-config", "-display", "none", "-S",
)  # fmt: skip
"""A machine that is there but does not run."""


class Way(StrEnum):
    """How a QEMU is started: by which command of flagshim, and with which engine."""

    NATIVE = "native"
    RUN = "run"
    EXEC = "exec"
    RUN_NOTIFY = "run-notify"
    EXEC_NOTIFY = "exec-notify"

    @property
    def command(self) -> str:
        """Of flagshim."""
        return self.value.partition("-")[0]

    @property
    def engine(self) -> str:
        """As --engine has it."""
        return self.value.partition("-")[2] or "ptrace"

    def prefix(self, trace: Path, user: str | None = None) -> tuple[str, ...]:
        """What to write before the QEMU command.

        Args:
            trace: where flagshim writes.
            user: whom QEMU is started as; None for the caller's user.
        """
        if self is Way.NATIVE:
            return user_prefix(user) if user else ()
        as_user = ("-u", user) if user else ()
        engine = ("--engine", self.engine)
        return (*flagshim_command(), self.command, *engine, "-o", str(trace), *as_user, "--")


class Machine:
    """A QEMU that was started; leave the block of `started`, and it is gone."""

    def __init__(self, way: Way, process: subprocess.Popen[str], trace: Path) -> None:
        self.way = way
        self.process = process
        self.trace = trace

    @property
    def pid(self) -> int:
        """QEMU's own PID, once it is QEMU."""
        if self.way.command == "run":
            wait_until(lambda: bool(qemus_of(self.process.pid)), "flagshim starts QEMU")
            return qemus_of(self.process.pid)[0]
        wait_until(lambda: is_qemu(self.process.pid), "the process is QEMU")
        return self.process.pid

    def ended(self) -> tuple[int, str, str]:
        """Wait for the end; exit status, standard output and standard error."""
        out, err = self.process.communicate(timeout=SECONDS)
        if self.way is not Way.NATIVE:
            wait_for_session(self.trace)
            query = "SELECT engine FROM session ORDER BY id DESC LIMIT 1"
            assert rows(self.trace, query) == [(self.way.engine,)]
        return self.process.returncode, out or "", own_words(err or "")


@contextlib.contextmanager
def started(way: Way, argv: Sequence[str], trace: Path, user: str | None = None,
            **how: object) -> Iterator[Machine]:  # fmt: skip
    """Start a QEMU, with pipes unless told otherwise; end what is left of it.

    Args:
        way: with or without flagshim.
        argv: the QEMU command.
        trace: where flagshim writes.
        user: whom QEMU is started as; None for the caller's user.
        how: for subprocess.Popen.
    """
    pipe = subprocess.PIPE
    mark = f"{MARK}={os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(
        ["env", mark, *way.prefix(trace, user), *argv], text=True, cwd=REPOSITORY,
        **{"stdin": pipe, "stdout": pipe, "stderr": pipe, **how},
    )  # fmt: skip
    try:
        yield Machine(way, process, trace)
    finally:
        for pid in _marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=SECONDS)


def _marked(mark: str) -> list[int]:
    """Every QEMU that was started with a mark in its environment, and supervisors after them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return sorted(found, key=lambda pid: not is_qemu(pid))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Look again and again, for what no descriptor tells."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.01)


def wait_for_session(trace: Path) -> None:
    """Wait until flagshim has ended the last session of a trace."""
    query = "SELECT ended_ns FROM session ORDER BY id DESC LIMIT 1"
    wait_until(lambda: rows(trace, query)[0][0] is not None, "the trace's session ends")


def wait_for_end(pid: int, seconds: float = SECONDS) -> None:
    """Wait for the end of a process that need not be a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], seconds)[0], f"process {pid} goes on"
    finally:
        os.close(descriptor)


def is_qemu(pid: int) -> bool:
    """Tell whether a process has come to run QEMU and has not gone."""
    return Path(program(pid)).name.startswith("qemu")


def qemus_of(pid: int) -> list[int]:
    """The children of a process that run QEMU."""
    return [child for child in children(pid) if is_qemu(child)]


def supervisors_of(pid: int) -> list[int]:
    """The notify engine's supervisors of a command, as ps(1) shows them."""
    return [one for one in everybody() if role_of(one).startswith(f"supervisor of {pid} (")]


def status_of(pid: int, *fields: str) -> dict[str, str]:
    """Lines of /proc/PID/status, proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {name: value.strip() for name, value in pairs if name in fields}


def own_words(stderr: str) -> str:
    """What QEMU said, without flagshim's last line."""
    return "".join(
        line for line in stderr.splitlines(keepends=True) if not line.startswith("flagshim: ")
    )
