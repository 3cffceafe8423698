"""What the tests of all three kinds share."""

import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
