"""What a suite is: a command that runs tests, and how to read what became of each."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path

from flagshim.errors import FlagshimError
from tests.guest.vm import user_prefix

USER = "nobody"

Verdicts = dict[str, str]
"""What became of each test, by its name: pass, fail or skip."""


class Suite(ABC):
    """The tests of one program.

    Attributes:
        name: what the suite is called on the command line.
        packages: Debian's, without which it cannot run.
        seconds: limit of one whole run.
        tracers: programs in it that trace, which flagshim has to leave alone.
        declining: tests, as a regular expression, that skip themselves where they find a tracer.
    """

    name: str
    packages: Sequence[str]
    seconds: int
    tracers: Sequence[str] = ()
    declining: str | None = None

    def __init__(self, home: Path) -> None:
        """Have a suite that keeps what it writes below a folder that belongs to USER."""
        self.home = home

    @abstractmethod
    def version(self) -> str:
        """What is tested, in a line."""

    def prepare(self) -> None:  # noqa: B027  (most need nothing)
        """Get and build what is no package; as root."""

    @abstractmethod
    def command(self, only: Collection[str]) -> Sequence[str]:
        """The command that runs all tests, or at least `only` these, as USER.

        Args:
            only: names as in Verdicts; empty for all.
        """

    def folder(self) -> Path:
        """Where it is run."""
        return self.home

    def environment(self) -> dict[str, str]:
        """What it needs besides PATH, HOME and TMPDIR."""
        return {}

    @abstractmethod
    def verdicts(self, said: str) -> Verdicts:
        """Read what came of a run from its output, or from the files it left."""

    def clear(self) -> None:  # noqa: B027  (nor this)
        """Remove what an earlier run left, so that it is not taken for what this one leaves."""

    def run(self, trace: Path | None, only: Collection[str] = ()) -> Verdicts:
        """Run the tests.

        Args:
            trace: what flagshim writes; None for a native run.
            only: these tests; empty for all.

        Raises:
            FlagshimError: no test said what became of it.
        """
        self.clear()
        scratch = self.home / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        shutil.chown(scratch, USER)
        way = "native" if trace is None else "flagshim"
        log = self.home / (f"{way}-again.log" if only else f"{way}.log")
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [*self._prefix(trace), "timeout", "--kill-after=10", str(self.seconds),
                 *self.command(only)],
                cwd=self.folder(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.home),
                     "TMPDIR": str(scratch), "LANG": "C.UTF-8",
                     **self.environment()},
            )  # fmt: skip
            try:
                process.wait(self.seconds + 60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = self.verdicts(log.read_text(errors="replace"))
        if not found:
            raise FlagshimError(f"{self.name}: no test ran", f"see {log}")
        print(f"{self.name}: {len(found)} tests, exit status {process.returncode}: {log}",
              file=sys.stderr, flush=True)  # fmt: skip
        return found

    def _prefix(self, trace: Path | None) -> Sequence[str]:
        if trace is None:
            return user_prefix(USER)
        exempt = [word for name in self.tracers for word in ("--except", name)]
        # -P: the folder it is run in may hold what Python would take for a module.
        flagshim = (sys.executable, "-P", "-m", "flagshim")
        return (*flagshim, "run", "-u", USER, "-o", str(trace), *exempt, "--")
