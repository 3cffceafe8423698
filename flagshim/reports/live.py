"""Opens as they are told of: a screen that changes on a terminal, a line each in a pipe."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Protocol, TextIO

from tabulate import tabulate

from flagshim.openflags import flag_names
from flagshim.reports.text import duration, local_clock, printable, shorten
from flagshim.rules import MACHINE
from flagshim.saying import say
from flagshim.trace.events import OpenEvent

_NAMES_MAX = 10_007
"""Different names counted at most; then those that came once are forgotten."""
_ROWS_MIN = 3
_ALTERNATE, _MAIN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


class Display(Protocol):
    """Shows events to somebody."""

    def begin(self, what: str) -> None:
        """Note that opens are looked at from now on."""

    def show(self, event: OpenEvent) -> None:
        """Take one event."""

    def tick(self, returned: Counter[int], lost: int) -> None:
        """Take the sums so far, once a second: calls by errno, and events lost."""


class Lines:
    """A line for each event, for a pipe or a file."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def begin(self, what: str) -> None:
        """Say it on stderr: whoever waits for it reads that."""
        say(f"watching {what}; ^C ends it")

    def show(self, event: OpenEvent) -> None:
        """Write one line."""
        flags = "-" if event.syscall == "fcntl" and not event.flags_before else ""
        path = event.path if event.path is not None else event.resolved
        self._out.write(
            f"{local_clock(event.time_ns)} {event.pid:>7} {printable(event.program):<18} "
            f"{event.syscall:<9} {result(event):<8} "
            f"{flags or flag_names(event.flags_before, MACHINE)} {printable(path)}\n"
        )

    def tick(self, returned: Counter[int], lost: int) -> None:
        """Let the reader have what there is."""
        del returned, lost
        self._out.flush()


def result(event: OpenEvent) -> str:
    """Return what a call returned: the name of an error, or a descriptor."""
    return event.errno or str(event.fd)


class Screen:
    """What is going on, drawn anew once a second: rate, programs, paths, errnos."""

    def __init__(self, out: TextIO, what: str, size: tuple[int, int]) -> None:
        """Draw on a terminal.

        Args:
            out: the terminal.
            what: is looked at.
            size: columns and lines.
        """
        self._out = out
        self._what = what
        self._columns, self._lines = size
        self._began = time.monotonic()
        self._told = self._told_before = self._peak = 0
        self._calls_before = 0
        self._programs: Counter[tuple[str, str]] = Counter()
        self._paths: Counter[tuple[str, str]] = Counter()
        self._errnos: Counter[str] = Counter()

    @contextlib.contextmanager
    def shown(self) -> Iterator["Screen"]:
        """Use the terminal's other screen meanwhile, so that nothing of the first is lost."""
        self._out.write(_ALTERNATE)
        try:
            self._out.write(f"{_HOME}flagshim watch {self._what}: loading…\n{_CLEAR_BELOW}")
            self._out.flush()
            yield self
        finally:
            self._out.write(_MAIN)
            self._out.flush()

    def begin(self, what: str) -> None:
        """Draw: loading took a while."""
        del what
        self._began = time.monotonic()
        self.tick(Counter(), 0)

    def show(self, event: OpenEvent) -> None:
        """Count one event."""
        self._told += 1
        ending = result(event) if event.errno else "ok"
        self._errnos[ending] += 1
        _count(self._programs, (ending, printable(event.program)))
        path = event.resolved if event.resolved is not None else event.path
        _count(self._paths, (ending, printable(path)))

    def tick(self, returned: Counter[int], lost: int) -> None:
        """Draw."""
        now = self._told - self._told_before
        self._told_before = self._told
        self._peak = max(self._peak, now)
        calls = returned.total()
        calls_now = calls - self._calls_before
        self._calls_before = calls
        since = duration(int(time.monotonic() - self._began) * 10**9)
        errnos = ", ".join(f"{name} {count}" for name, count in self._errnos.most_common(6))
        head = [
            f"flagshim watch {self._what}, for {since}. ^C ends it.",
            f"opens  {calls}, {calls_now} in the last second",
            f"told   {self._told}, {now} in the last second, {self._peak} in the busiest: {errnos}"
            if self._told
            else "told   none",
        ]
        if lost:
            head.append(f"lost   {lost}: flagshim did not keep up")
        rows = max((self._lines - len(head) - 6) // 2, _ROWS_MIN)
        body = [
            "",
            *_table("program", self._programs, rows, self._columns),
            "",
            *_table("path", self._paths, rows, self._columns),
        ]
        lines = [shorten(line, self._columns) for line in (*head, *body)][: self._lines - 1]
        self._out.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW)
        self._out.flush()


def _count(names: Counter[tuple[str, str]], name: tuple[str, str]) -> None:
    names[name] += 1
    if len(names) > _NAMES_MAX:
        for rare in [name for name, count in names.items() if count == 1]:
            del names[rare]


def _table(title: str, names: Counter[tuple[str, str]], rows: int, columns: int) -> list[str]:
    if not names:
        return []
    cells = [
        [str(count), ending, shorten(name, max(columns - 24, 12))]
        for (ending, name), count in names.most_common(rows)
    ]
    text = tabulate(
        [["OPENS", "RESULT", title.upper()], *cells],
        tablefmt="plain",
        colalign=("right", "left", "left"),
        disable_numparse=True,
    )
    return text.splitlines()
