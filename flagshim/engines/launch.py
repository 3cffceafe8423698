"""Starting CMD as a child that is traced before it begins."""

import os

from flagshim import tracee
from flagshim.engines.command import REPORT, Command, NotStarted
from flagshim.errors import FlagshimError
from flagshim.linux.ptrace import ptrace_seize


class Child:
    """A process that waits to become CMD."""

    def __init__(self, pid: int, gate: int, report: int) -> None:
        self.pid = pid
        self._gate = gate
        self._report = report

    def release(self) -> None:
        """Let it go on to exec."""
        os.write(self._gate, b"x")
        os.close(self._gate)

    def give_up(self) -> None:
        """Have it end without having become anything, and reap it."""
        os.close(self._gate)
        os.waitpid(self.pid, 0)

    def not_started(self) -> NotStarted | None:
        """Tell why CMD never started, once the child is gone; None if it did."""
        report = os.read(self._report, REPORT.size)
        os.close(self._report)
        return NotStarted(*REPORT.unpack(report)) if report else None


def fork_waiting(command: Command) -> Child:
    """Fork a child that waits for `Child.release`, and exits if that never comes.

    fork and exec, not subprocess.Popen: that would close descriptors CMD was given, and
    QEMU is often given some.
    """
    gate_read, gate_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(gate_write)
            os.close(report_read)
            if os.read(gate_read, 1):  # else the supervisor is gone
                command.become()
        except NotStarted as reason:
            os.write(report_write, REPORT.pack(reason.stage, reason.number))
        finally:
            os._exit(0)
    os.close(gate_read)
    os.close(report_write)
    return Child(pid, gate_write, report_read)


def start(command: Command, options: int) -> Child:
    """Fork a child, seize it, and have it wait for `Child.release`.

    Args:
        command: what the child is to become.
        options: PTRACE_O_*.

    Raises:
        FlagshimError: the child could not be traced.
    """
    child = fork_waiting(command)
    try:
        ptrace_seize(child.pid, options)
    except OSError as error:
        child.give_up()
        raise FlagshimError(
            f"cannot trace a child of our own: {error.strerror}{_tracer_of_ours()}",
            "see flagshim doctor",
        ) from None
    return child


def _tracer_of_ours() -> str:
    """Name the process that traces us already, whose child we then cannot trace."""
    tracer = tracee.tracer_of(os.getpid())
    return f" (we are traced by {os.fsdecode(tracee.comm(tracer))}, PID {tracer})" if tracer else ""
