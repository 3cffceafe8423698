"""Telling people something in one line: on stderr, to a program that listens, in the log."""

import contextlib
import os
import select
import socket
import syslog
import time
from collections.abc import Callable

from flagshim import status

_LOG = "/dev/log"
_DAEMON_WARNING = syslog.LOG_DAEMON | syslog.LOG_WARNING

Say = Callable[[str], None]
"""One of these."""


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
