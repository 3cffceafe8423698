"""The one kind of error a person sees: what went wrong, and the way out."""

import contextlib
import errno
import os
import select
import socket
import syslog
import time
from collections.abc import Callable

from flagshim import status

EXIT_FAILURE = 125
"""flagshim itself failed, as in env(1), timeout(1) and docker-run(1)."""
EXIT_GATE = 122
"""A gate failed (--fail-on, --baseline); even, so that no guest says it by isa-debug-exit."""
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


_LOG = "/dev/log"
_DAEMON_WARNING = syslog.LOG_DAEMON | syslog.LOG_WARNING
LIMITS = "see ulimit -n, ulimit -u and ulimit -v"
_LIMIT_HINTS = {
    errno.EMFILE: "see ulimit -n",
    errno.ENFILE: "see /proc/sys/fs/file-max",
    errno.EAGAIN: "see ulimit -u, and pids.max of the cgroup",
    errno.ENOMEM: "see ulimit -v",
}

Say = Callable[[str], None]
"""How to tell somebody of a trouble, in one line."""


class FlagshimError(Exception):
    """A failure that ends the command with one line on stderr.

    Args:
        message: the cause, naming the file, option or process concerned.
        hint: what to do about it; one clause, no full stop.
        exit_code: the exit status of the command, 125 unless it says otherwise.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


def hint_for(error: OSError, otherwise: str) -> str:
    """Return what to do about an error of the kernel's: look at the limit that was reached.

    Args:
        error: what a call of ours has failed with.
        otherwise: the hint if it is about no limit.
    """
    return _LIMIT_HINTS.get(error.errno or 0, otherwise)


def say(text: str) -> None:
    """Print one line on stderr, "flagshim: …", if anybody is there to read it.

    Or tell it to the program that started us, where that has said that it listens.

    Straight to the descriptor: what cannot be written is not to fail again when Python exits,
    and does not change the exit status. `text` may hold names that others chose.
    """
    if status.tell("message", text=text):
        return
    with contextlib.suppress(OSError):
        os.write(2, f"flagshim: {_on_one_line(text)}\n".encode(errors="backslashreplace"))


def say_in_passing(text: str, seconds: float = 0.0) -> None:
    """Like `say`, by processes that others may have to wait for.

    Left unsaid if that would have to wait, as for a pipe that CMD has filled and nobody reads.

    Args:
        text: that.
        seconds: how long somebody may take to make room for it.
    """
    ear = select.poll()
    ear.register((*status.listeners(), 2)[0], select.POLLOUT)
    if ear.poll(seconds * 1000):
        say(text)


def say_in_syslog(text: str) -> None:
    """Tell who looks into syslog(3) of a trouble, where nobody sees our stderr.

    Left unsaid if that would have to wait, which syslog(3) itself does for a logger that hangs.
    """
    line = f"<{_DAEMON_WARNING}>{time.strftime('%b %e %H:%M:%S')} flagshim[{os.getpid()}]: "
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as log,
    ):
        log.connect(_LOG)
        log.send((line + _on_one_line(text)).encode(errors="backslashreplace"))


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
