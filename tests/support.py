"""What the tests of all three kinds share."""

import os
import select
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
T = TypeVar("T")
HANGS = 300.0
"""Seconds after which something is taken to hang. A test of 7 seconds took 37 where twenty
processes wanted two CPUs."""


def require(name: str, reason: str | None) -> None:
    """Skip the test for `reason`, or fail it where the machine is meant to be able to.

    Args:
        name: ptrace, seccomp, i386, guest, fuse …; $FLAGSHIM_REQUIRE lists those whose
            absence is a failure ("all" for every one).
        reason: what a functional probe found missing; None lets the test run.
    """
    if reason is None:
        return
    required = os.environ.get("FLAGSHIM_REQUIRE", "").replace(" ", "").split(",")
    if name in required or "all" in required:
        pytest.fail(f"{name} is required here: {reason}")
    pytest.skip(f"{name}: {reason}")


def wait_until(condition: Callable[[], T]) -> T:
    """Wait for something that is to happen soon; return what it was."""
    deadline = time.monotonic() + HANGS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return found


def flagshim_command() -> list[str]:
    """The command under test, run from this tree."""
    return [sys.executable, "-m", "flagshim"]


def rows(trace: Path, query: str) -> list[tuple[Any, ...]]:
    """Run a query on a trace file."""
    connection = sqlite3.connect(f"file:{trace}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def read_until(fd: int, mark: bytes | None, seconds: float = HANGS) -> bytes:
    """Read up to and with `mark`, or to the end if None; fail rather than wait for ever.

    Args:
        fd: where to read.
        mark: what to wait for.
        seconds: how long between two pieces.
    """
    output = b""
    while select.select([fd], [], [], seconds)[0]:
        try:
            chunk = os.read(fd, 1024)
        except OSError:  # EIO: nobody has the other end of the terminal
            chunk = b""
        output += chunk
        if not chunk or (mark and mark in output):
            assert not mark or mark in output, f"no {mark!r} in {output!r}"
            return output
    raise AssertionError(f"nothing more after {output!r}")
