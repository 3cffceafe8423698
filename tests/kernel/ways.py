"""The ways to be under flagshim: a child of it, what it becomes, attached to, injected into."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.kernel.conftest import NOBODY, SECONDS, Run, Runner
from tests.support import REPOSITORY, flagshim_command, wait_until


def as_exec(run: Runner, argv: list[str], *options: str, user: str | None = "nobody") -> list[str]:
    """Return the command line of `flagshim exec` for a command."""
    command = run.command(argv, *options, user=user)
    command[command.index("run")] = "exec"
    return command


def ended_trace(run: Runner) -> Run:
    """The trace, once the helper has ended the session."""
    shim = run.last()
    wait_until(lambda: shim.session("ended_ns") != (None,))
    return shim


def attach(run: Runner, pid: int, *options: str) -> subprocess.Popen[str]:
    """Attach to a process; return once flagshim says that it serves it, or has ended."""
    run.command([])
    process = subprocess.Popen(
        [*flagshim_command(), "attach", "-o", str(run.trace), *options, str(pid)],
        stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stderr is not None
    said = b""
    while b"is served" not in said and (more := _line(process.stderr.fileno())):
        said += more
    return process


def _line(fd: int) -> bytes:
    """Read a line and not a byte more; the rest is for subprocess to read."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(fd, 1)):
        line += byte
    return line


def status_of(pid: int, field: str) -> str:
    """Return a field of proc(5), status."""
    text = Path(f"/proc/{pid}/status").read_text(errors="surrogateescape")
    return text.split(f"\n{field}:\t")[1].split("\n")[0]


def tracer_of(pid: int) -> int:
    """Return the PID of a process's tracer, 0 if it has none."""
    return int(status_of(pid, "TracerPid"))


def traced(pid: int) -> bool:
    """Tell whether a process has a tracer."""
    return status_of(pid, "TracerPid") != "0"


class Way:
    """Runs commands to their end under flagshim, and gives what they left."""

    def __init__(self, name: str, run: Runner, folder: Path) -> None:
        self.name = name
        self.command, _, self.engine = name.partition(" ")
        self.holds_by_listener = self.engine == "notify"
        self._run = run
        self._gate = folder / "gate"

    def __call__(
        self, argv: Sequence[str], *options: str, user: str | None = "nobody", **kwargs: object
    ) -> Run:
        """Run a command, as nobody unless `user` is None."""
        if self.holds_by_listener:
            options = ("--engine", "notify", *options)
        if self.command == "run":
            return self._run.supervised(list(argv), *options, user=user, **kwargs)
        if self.command == "exec":
            return self._exec(list(argv), *options, user=user, **kwargs)
        return self._attach(list(argv), *options, user=user, **kwargs)

    def _exec(self, argv: list[str], *options: str, user: str | None, **kwargs: object) -> Run:
        kwargs.setdefault("cwd", REPOSITORY)
        result = subprocess.run(
            as_exec(self._run, argv, *options, user=user), capture_output=True, text=True,
            timeout=SECONDS, check=False, **kwargs,
        )  # fmt: skip
        ended = ended_trace(self._run)
        return Run(result.returncode, result.stdout, result.stderr, ended.trace)

    def _attach(self, argv: list[str], *options: str, user: str | None, **kwargs: object) -> Run:
        """Attach to a shell that waits at a FIFO, and then becomes the command."""
        if not self._gate.exists():
            os.mkfifo(self._gate)
            os.chmod(self._gate, 0o666)
        kwargs.setdefault("cwd", REPOSITORY)
        process = subprocess.Popen(
            ["sh", "-c", 'read go <"$0"; exec "$@"', str(self._gate), *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            user=NOBODY if user else None, process_group=0, **kwargs,
        )  # fmt: skip
        flagshim = None
        injects = ("--inject-filter",) if self.name == "inject" else ()
        try:
            flagshim = attach(self._run, process.pid, *injects, *options)
            if injects:
                assert flagshim.wait(timeout=SECONDS) == 0, flagshim.communicate()[1]
            else:
                assert flagshim.poll() is None, flagshim.communicate()[1]
            with self._gate.open("w") as gate:
                gate.write("\n")
            out, err = process.communicate(timeout=SECONDS)
            err += flagshim.communicate(timeout=SECONDS)[1]
            return Run(process.returncode, out, err, ended_trace(self._run).trace)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            for leftover in (process, flagshim):
                if leftover is not None and leftover.poll() is None:
                    leftover.kill()
                    leftover.wait()
