"""A pseudo terminal with somebody typing at it."""

import contextlib
import os
import pty
import select
import signal
import termios
import time
from types import TracebackType
from typing import Self

from tests.kernel.conftest import SECONDS
from tests.support import REPOSITORY

INTERRUPT, QUIT, SUSPEND = "\x03", "\x1c", "\x1a"


class Terminal:
    """Runs a command in a session of its own on a terminal of its own."""

    def __init__(self, argv: list[str]) -> None:
        self.text = ""
        self._new = b""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            for number in (signal.SIGINT, signal.SIGQUIT):  # ignored in a job with "&"
                signal.signal(number, signal.SIG_DFL)
            _without_echo(0)  # before a shell takes note of how it is
            os.chdir(REPOSITORY)
            os.execvp(argv[0], argv)
        _without_echo(self._fd)  # before anybody types

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        os.close(self._fd)  # hangs up, which ends the whole session
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def type(self, line: str) -> None:
        """Type a line, and Enter."""
        self.press(line + "\n")

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._fd, keys.encode())

    def expect(self, mark: bytes) -> None:
        """Read up to and with `mark`; fail rather than wait for ever."""
        while mark not in self._new:
            if not select.select([self._fd], [], [], SECONDS)[0]:
                raise AssertionError(f"no {mark!r} in {self.text!r} {self._new!r}")
            self._new += self._read()
        before, found, self._new = self._new.partition(mark)
        self.text += (before + found).decode(errors="replace")

    def wait(self) -> int:
        """Wait for the end of the command; return its exit status."""
        self.text += self._new.decode(errors="replace")
        deadline = time.monotonic() + SECONDS
        while select.select([self._fd], [], [], max(0, deadline - time.monotonic()))[0]:
            chunk = self._read()
            if not chunk:
                break
            self.text += chunk.decode(errors="replace")
        status = os.waitpid(self._pid, 0)[1]
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):  # EIO: everybody has closed the other side
            return os.read(self._fd, 4096)
        return b""


def _without_echo(fd: int) -> None:
    """Have nothing printed that is typed; it would be found as if somebody had printed it."""
    attributes = termios.tcgetattr(fd)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
