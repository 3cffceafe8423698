"""The three ways to be under flagshim: started by it, become by it, attached to by it."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.kernel.conftest import NOBODY, SECONDS, Run, Runner
from tests.kernel.test_attach import attach
from tests.kernel.test_exec import as_exec, ended_trace
from tests.support import REPOSITORY


class Way:
    """Runs commands to their end under flagshim, and gives what they left."""

    def __init__(self, name: str, run: Runner, folder: Path) -> None:
        self.name = name
        self._run = run
        self._gate = folder / "gate"

    def __call__(
        self, argv: Sequence[str], *options: str, user: str | None = "nobody", **kwargs: object
    ) -> Run:
        """Run a command, as nobody unless `user` is None."""
        if self.name == "run":
            return self._run.supervised(list(argv), *options, user=user, **kwargs)
        if self.name == "exec":
            return self._exec(list(argv), *options, user=user, **kwargs)
        return self._attach(list(argv), *options, user=user, **kwargs)

    def _exec(self, argv: list[str], *options: str, user: str | None, **kwargs: object) -> Run:
        kwargs.setdefault("cwd", REPOSITORY)
        result = subprocess.run(
            as_exec(self._run, argv, *options, user=user), capture_output=True, text=True,
            timeout=SECONDS, check=False, **kwargs,
        )  # fmt: skip
        ended = ended_trace(self._run)
        return Run(result.returncode, result.stdout, result.stderr, ended.trace)

    def _attach(self, argv: list[str], *options: str, user: str | None, **kwargs: object) -> Run:
        """Attach to a shell that waits at a FIFO, and then becomes the command."""
        if not self._gate.exists():
            os.mkfifo(self._gate)
            os.chmod(self._gate, 0o666)
        kwargs.setdefault("cwd", REPOSITORY)
        process = subprocess.Popen(
            ["sh", "-c", 'read go <"$0"; exec "$@"', str(self._gate), *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            user=NOBODY if user else None, process_group=0, **kwargs,
        )  # fmt: skip
        flagshim = None
        try:
            flagshim = attach(self._run, process.pid, *options)
            assert flagshim.poll() is None, flagshim.communicate()[1]
            with self._gate.open("w") as gate:
                gate.write("\n")
            out, err = process.communicate(timeout=SECONDS)
            err += flagshim.communicate(timeout=SECONDS)[1]
            return Run(process.returncode, out, err, self._run.trace)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            for leftover in (process, flagshim):
                if leftover is not None and leftover.poll() is None:
                    leftover.kill()
                    leftover.wait()
