"""Becoming CMD: the steps between a fork, or our own end, and the program's beginning."""

import errno
import os
import pwd
import signal
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from flagshim import descriptors
from flagshim.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, LIMITS, FlagshimError
from flagshim.linux.filters import install_seccomp_filter, install_seccomp_listener
from flagshim.linux.process import execvpe, set_no_new_privs

REPORT = struct.Struct("=BI")
"""What is left of a process that could not become CMD: stage and errno."""
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
    except (KeyError, OverflowError, ValueError):
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


@dataclass(frozen=True)
class Command:
    """Everything a process needs to know to become CMD."""

    argv: list[bytes]
    environment: list[bytes]
    """As we were started with it, byte for byte."""
    filter: bytes | None
    """What `build_filter` returned; None for an engine without one."""
    user: User | None
    """Whom to become; None for nobody else."""
    listener_to: tuple[int, int] | None
    """Socket to send the listener of the filter to, and to be told on that there is somebody who
    serves it, with its other end, which is theirs; None for a filter without one."""
    signal_mask: set[int | signal.Signals]
    """What was blocked when we were started."""
    chld_ignored: bool
    """Whether SIGCHLD was ignored when we were started."""

    @property
    def name(self) -> str:
        """Base name of the program."""
        return os.fsdecode(os.path.basename(self.argv[0]))

    def become(self) -> NoReturn:
        """Turn this process into the program. It is traced already.

        Raises:
            NotStarted: it could not be; this process is good for nothing but to say so.
        """
        stage = _USER
        try:
            _restore_signals(self.signal_mask, self.chld_ignored)
            if self.user is not None:
                os.initgroups(self.user.name, self.user.gid)
                os.setresgid(self.user.gid, self.user.gid, self.user.gid)
            stage = _FILTER  # as root yet, and when nobody has to be told of groups any more
            if self.filter is not None:
                self._install(self.filter)
            stage = _USER
            if self.user is not None:
                os.setresuid(self.user.uid, self.user.uid, self.user.uid)
            stage = _EXEC
            execvpe(self.argv, self.environment)
        except OSError as error:
            raise NotStarted(stage, error.errno or 0) from None
        raise AssertionError("execvpe returned")

    def _install(self, filter_program: bytes) -> None:
        """Install the filter; give up set-user-ID programs only where the kernel insists.

        Root has CAP_SYS_ADMIN and need not, so that setuid helpers of CMD go on working.
        """
        try:
            self._try_to_install(filter_program)
        except PermissionError:
            set_no_new_privs()
            self._try_to_install(filter_program)

    def _try_to_install(self, filter_program: bytes) -> None:
        if self.listener_to is None:
            install_seccomp_filter(filter_program)
            return
        ours, theirs = self.listener_to
        listener = install_seccomp_listener(filter_program)
        descriptors.close([theirs])
        with socket.socket(fileno=ours) as channel:
            socket.send_fds(channel, [b"l"], [listener])
            os.close(listener)
            if not channel.recv(1):  # there is nobody who would serve us
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def failure(self, reason: "NotStarted") -> FlagshimError:
        """Say why CMD did not start."""
        cause = os.strerror(reason.number)
        if reason.stage == _FILTER and reason.number == errno.ECANCELED:
            return FlagshimError("no supervisor can be started", LIMITS)
        if reason.stage == _FILTER and reason.number == errno.EBUSY:
            return FlagshimError(
                "a filter we are under has a listener already (a container runtime's?)",
                "use --engine ptrace",
            )
        if reason.stage == _FILTER:
            return FlagshimError(f"cannot install a seccomp filter: {cause}", "see flagshim doctor")
        if reason.stage == _USER:
            return FlagshimError(f"cannot become that user: {cause}", "see flagshim doctor")
        return command_failure(os.fsdecode(self.argv[0]), reason.number)


def command_for(
    argv: Sequence[str],
    filter_program: bytes | None,
    user: User | None,
    listener_to: tuple[int, int] | None = None,
) -> Command:
    """Return a command that finds things as this process was started with them."""
    return Command(
        [os.fsencode(word) for word in argv],
        original_environment(),
        filter_program,
        user,
        listener_to,
        signal.pthread_sigmask(signal.SIG_BLOCK, []),
        signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN,
    )


class NotStarted(Exception):
    """CMD could not be started: at which stage, with which errno."""

    def __init__(self, stage: int, number: int) -> None:
        super().__init__(stage, number)
        self.stage = stage
        self.number = number


def command_failure(command: str, number: int) -> FlagshimError:
    """Return the error for a CMD that exec(2) answers with errno `number`."""
    if number in (errno.ENOENT, errno.ENOTDIR):
        return FlagshimError(f"{command}: not found", "check the name and PATH", EXIT_NOT_FOUND)
    hint = {
        errno.EACCES: "check its mode, and that the user may reach it",
        errno.EISDIR: "name a program in it",
        errno.ENOEXEC: "it is not a program this machine can run",
        errno.E2BIG: "its arguments and environment are too long",
    }.get(number, "see execve(2)")
    return FlagshimError(f"{command}: {os.strerror(number)}", hint, EXIT_NOT_EXECUTABLE)


def _restore_signals(signal_mask: set[int | signal.Signals], chld_ignored: bool) -> None:
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if chld_ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
