"""A program that opens a file with O_NOATIME when it is told to, and says what came of it."""

import subprocess
from pathlib import Path
from typing import NamedTuple, Self

NOBODY = 65534
_SECONDS = 120


class Answer(NamedTuple):
    """What came of some opens."""

    good: int
    refused: int
    """EPERM."""
    other: int
    ns: int
    """For all of them."""


class Asked:
    """tests/kernel/programs/asked.c at work, as nobody. A context manager."""

    def __init__(
        self,
        program: str,
        file: str,
        *prefix: str,
        user: int | None = NOBODY,
        cwd: Path | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, user=user, cwd=cwd, bufsize=1,
        )  # fmt: skip
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.communicate(timeout=_SECONDS)

    def ask(self, way: str, count: int) -> Answer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{way} {count}\n")
        self.process.stdin.flush()
        return Answer(*map(int, self.process.stdout.readline().split()))
