"""How O_NOATIME fared on the host: strace counts for QEMU alone, the trace tells with flagshim."""

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support import flagshim_command


def strace_prefix(log: Path) -> tuple[str, ...]:
    """A command that runs another and writes its openat and fcntl calls to a log."""
    # A choice by status makes strace hold a line back until the call has ended: no line is torn.
    what = ("-e", "trace=openat,fcntl", "-e", "status=!unfinished")
    return ("strace", "--seccomp-bpf", "-f", *what, "-o", str(log), "--")


class Asked(NamedTuple):
    """What became of the calls with O_NOATIME."""

    all: int
    refused: int
    """With EPERM."""


def count_asked(log: Path) -> Asked:
    """Count the calls with O_NOATIME in the log of strace_prefix()."""
    lines = log.read_text(errors="replace").splitlines()
    asked = [line for line in lines if "O_NOATIME" in line]
    return Asked(len(asked), sum(" = -1 EPERM " in line for line in asked))


def flagshim_prefix(trace: Path, user: str = "nobody", engine: str = "ptrace") -> tuple[str, ...]:
    """A command that runs another under flagshim as a user, with its trace in a file."""
    how = ("--engine", engine, "-u", user, "-o", str(trace))
    return (*flagshim_command(), "run", *how, "--")


class Touched(NamedTuple):
    """What the tests look at of an event; see flagshim/trace/events.py."""

    syscall: str
    resolved: str | bytes | None
    flags_before: int
    flags_after: int
    decision: str
    reason: str
    errno: str | None
    tries: int


@dataclass(frozen=True)
class Trace:
    """A trace file of one session, read."""

    engine: str
    exit_status: int | None
    command: list[str]
    seen: int
    lost: int
    events: tuple[Touched, ...]

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Read a trace file that holds exactly one session."""
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as table:
            ((engine, exit_status, command, seen, lost),) = table.execute(
                "SELECT engine, exit_status, command, seen, lost FROM session"
            )
            columns = ", ".join(Touched._fields)
            events = [Touched(*row) for row in table.execute(f"SELECT {columns} FROM event")]
        return cls(engine, exit_status, json.loads(command), seen, lost, tuple(events))

    @property
    def cleared(self) -> list[Touched]:
        """Calls that asked for O_NOATIME, and that the kernel got without it."""
        return [
            event
            for event in self.events
            if event.decision == "cleared" and event.flags_before & os.O_NOATIME
        ]

    @property
    def refused(self) -> list[Touched]:
        """Calls whose EPERM the program got to see."""
        return [event for event in self.events if event.errno == "EPERM"]


def by_file(events: Iterable[Touched], syscall: str) -> Counter[str | bytes | None]:
    """How many events of a system call each file has."""
    return Counter(event.resolved for event in events if event.syscall == syscall)
