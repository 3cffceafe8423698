"""Standard output and what is beside it: full disks, readers that go away, colour, progress."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TextIO

import click

from flagshim.errors import FlagshimError
from flagshim.reports.palette import Palette

color_option = click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colours in tables: on a terminal where NO_COLOR is not set, always or never.",
)


def palette(color: str, stream: TextIO | None = None) -> Palette:
    """Return the colours that `color_option` asks for; auto as https://no-color.org has it.

    Args:
        stream: what they are for; None: standard output.
    """
    if color == "auto":
        dumb = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
        return Palette(_on_terminal(stream or sys.stdout) and not dumb)
    return Palette(color == "always")


@contextmanager
def standard_output(
    exact: bool = False, first: Callable[[], None] = lambda: None
) -> Iterator[io.TextIOWrapper]:
    """Give standard output as text, written to the last byte when the block ends.

    Args:
        exact: UTF-8 and line ends as they are, for programs; else the encoding of the
            terminal, with what that cannot show escaped.
        first: called before anything is written.

    Raises:
        FlagshimError: it is closed, or cannot be written.
        BrokenPipeError: its reader went away.
    """
    if sys.stdout is None:
        raise FlagshimError("standard output is closed", "redirect it to a file")
    binary = sys.stdout.buffer
    if exact:
        out = _Output(binary, "utf-8", newline="")
    else:
        encoding = sys.stdout.encoding or "utf-8"
        out = _Output(binary, encoding, errors="backslashreplace")
    out.first = first
    try:
        yield out
        out.flush()
    except OSError as error:
        discard_output()
        if isinstance(error, BrokenPipeError):
            raise
        hint = "write it elsewhere"
        raise FlagshimError(f"standard output: {error.strerror}", hint) from error
    finally:
        with suppress(OSError, ValueError):
            out.detach()


def discard_output() -> None:
    """Send what is still in the buffer nowhere, or Python would complain of it at its end."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


class _Output(io.TextIOWrapper):
    """Text that says when it begins."""

    first: Callable[[], None] | None = None

    def write(self, text: str) -> int:
        if self.first:
            self.first()
            self.first = None
        return super().write(text)


@contextmanager
def ending_as_coreutils() -> Iterator[None]:
    """Let a reader of standard output that goes away end us by SIGPIPE, without a word."""
    handler = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, handler)


class Progress:
    """A line on stderr for work that takes longer than a moment; none where nobody looks.

    A context manager: the line is gone when the block is left.

    Args:
        what: what is being done, for "flagshim: WHAT, 3 s".
    """

    _FIRST_S = 1.0
    _EVERY_S = 0.2

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._shown_at = time.monotonic()
        self._visible = False
        self._wanted = _on_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def tick(self) -> Callable[[], None] | None:
        """What to call now and then while at work; None if nobody looks."""
        return self._tick if self._wanted else None

    def _tick(self) -> None:
        now = time.monotonic()
        if not self._wanted or now - self._shown_at < (
            self._EVERY_S if self._visible else self._FIRST_S
        ):
            return
        self._shown_at = now
        self._write(f"\r\x1b[Kflagshim: {self._what}, {now - self._began:.0f} s")
        self._visible = True

    def give_way(self) -> None:
        """Take the line away for good if the output now begins on the same terminal."""
        if _on_terminal(sys.stdout):
            self.end()

    def end(self) -> None:
        """Take the line away, for good."""
        if self._visible:
            self._write("\r\x1b[K")
        self._visible = self._wanted = False

    def _write(self, text: str) -> None:
        with suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))


def _on_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
