"""Starting a program as a tracee that otherwise finds everything as its caller left it."""

import contextlib
import errno
import os
import pwd
import signal
import struct
from dataclasses import dataclass

from flagshim.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, FlagshimError
from flagshim.linux import (
    TRACE_OPTIONS,
    execvpe,
    install_seccomp_filter,
    ptrace_seize,
    set_no_new_privs,
)

_REPORT = struct.Struct("=BI")
_FILTER, _USER, _EXEC = range(3)

# What Python's start-up ignores, and exec would hand on (signal(7)).
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True)
class User:
    """The user a program is started as."""

    name: str
    uid: int
    gid: int


def find_user(name: str) -> User:
    """Look up the argument of -u, a name or a numeric user ID of the user database.

    Raises:
        FlagshimError: no such user, or we are not root.
    """
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise FlagshimError(f"-u {name}: no such user", "see getent passwd") from None
    if os.geteuid() != 0:
        raise FlagshimError(
            f"-u {name}: only root can start a program as somebody else",
            "run flagshim as root, or leave -u out",
        )
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


def original_environment() -> list[bytes]:
    """Return the environment we were started with, byte for byte.

    Not os.environb: Python itself may have added LC_CTYPE to that (PEP 538).
    """
    with open("/proc/self/environ", "rb") as file:
        return file.read().split(b"\0")[:-1]


class Child:
    """A process that waits, seized and filtered, to become CMD."""

    def __init__(self, pid: int, gate: int, report: int) -> None:
        self.pid = pid
        self._gate = gate
        self._report = report

    def release(self) -> None:
        """Let it go on to exec."""
        os.write(self._gate, b"x")
        os.close(self._gate)

    def exec_failure(self, command: str) -> FlagshimError | None:
        """Say why CMD never started, once the child is gone; None if it did."""
        report = os.read(self._report, _REPORT.size)
        os.close(self._report)
        if not report:
            return None
        stage, number = _REPORT.unpack(report)
        cause = os.strerror(number)
        if stage == _FILTER:
            return FlagshimError(f"cannot install a seccomp filter: {cause}", "see flagshim doctor")
        if stage == _USER:
            return FlagshimError(f"cannot become that user: {cause}", "see flagshim doctor")
        return command_failure(command, number)


def command_failure(command: str, number: int) -> FlagshimError:
    """Return the error for a CMD that exec(2) answers with errno `number`."""
    if number in (errno.ENOENT, errno.ENOTDIR):
        return FlagshimError(f"{command}: not found", "check the name and PATH", EXIT_NOT_FOUND)
    hint = {
        errno.EACCES: "check its mode, and that the user may reach it",
        errno.ENOEXEC: "it is not a program this machine can run",
        errno.E2BIG: "its arguments and environment are too long",
    }.get(number, "see execve(2)")
    return FlagshimError(f"{command}: {os.strerror(number)}", hint, EXIT_NOT_EXECUTABLE)


def start(
    argv: list[bytes],
    filter_program: bytes,
    user: User | None,
    signal_mask: set[int | signal.Signals],
    chld_ignored: bool,
) -> Child:
    """Fork a child, seize it, and have it wait for `Child.release`.

    fork and exec, not subprocess.Popen: that would close descriptors CMD was given, and
    QEMU is often given some.

    Args:
        argv: CMD and its arguments.
        filter_program: what `build_filter` returned.
        user: whom to become, None for nobody else.
        signal_mask: what was blocked when we were started.
        chld_ignored: whether SIGCHLD was ignored when we were started.

    Raises:
        FlagshimError: the child could not be traced.
    """
    environment = original_environment()
    gate_read, gate_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        stage = _FILTER
        try:
            os.close(gate_write)
            os.close(report_read)
            if not os.read(gate_read, 1):  # the supervisor is gone
                os._exit(0)
            _restore_signals(signal_mask, chld_ignored)
            _install(filter_program)
            stage = _USER
            if user is not None:
                os.initgroups(user.name, user.gid)
                os.setresgid(user.gid, user.gid, user.gid)
                os.setresuid(user.uid, user.uid, user.uid)
            stage = _EXEC
            execvpe(argv, environment)
        except OSError as error:
            os.write(report_write, _REPORT.pack(stage, error.errno or 0))
        finally:
            os._exit(0)
    os.close(gate_read)
    os.close(report_write)
    try:
        ptrace_seize(pid, TRACE_OPTIONS)
    except OSError as error:
        os.close(gate_write)
        os.waitpid(pid, 0)
        raise FlagshimError(
            f"cannot trace a child of our own: {error.strerror}{_tracer_of_ours()}",
            "see flagshim doctor",
        ) from None
    return Child(pid, gate_write, report_read)


def _install(filter_program: bytes) -> None:
    """Install the filter; give up set-user-ID programs only where the kernel insists.

    Root has CAP_SYS_ADMIN and need not, so that setuid helpers of CMD go on working.
    """
    try:
        install_seccomp_filter(filter_program)
    except PermissionError:
        set_no_new_privs()
        install_seccomp_filter(filter_program)


def _restore_signals(signal_mask: set[int | signal.Signals], chld_ignored: bool) -> None:
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if chld_ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)


def _tracer_of_ours() -> str:
    """Name the process that traces us already, whose child we then cannot trace."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as file:
        tracer = int(next(line for line in file if line.startswith("TracerPid:")).split()[1])
        if tracer:
            with open(f"/proc/{tracer}/comm") as comm:
                return f" (we are traced by {comm.read().strip()}, PID {tracer})"
    return ""
