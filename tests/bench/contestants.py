"""Who is compared: the ways a program can be run, and the commands for them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flagshim.errors import FlagshimError
from tests.guest.vm import user_prefix
from tests.support import flagshim_command

HERE = Path(__file__).parent
TRACED = "trace=open,openat,openat2,open_by_handle_at,fcntl"
"""What strace is told to look at: the calls that flagshim looks at."""

_FOREIGN = Path("/etc/passwd")
"""A file that everybody may read and only root owns, where we cannot make one."""


class Contestant(StrEnum):
    """A way to run a program."""

    NATIVE = "native"
    PRELOAD = "LD_PRELOAD"
    STRACE_BPF = "strace --seccomp-bpf"
    STRACE = "strace"
    FLAGSHIM = "flagshim"
    NOTIFY = "flagshim --engine notify"


@dataclass(frozen=True)
class Bench:
    """The folder it all happens in, with what was compiled for it.

    Attributes:
        refused: a file whose open with O_NOATIME the kernel refuses to `user`.
        owned: a file that `user` owns.
        user: whom programs are run as; None for ourselves.
    """

    folder: Path
    opener: Path
    preload: Path
    spinner: Path
    refused: Path
    owned: Path
    user: str | None

    @property
    def log(self) -> Path:
        """Where strace puts its log."""
        return self.folder / "strace.log"

    @property
    def trace(self) -> Path:
        """Where flagshim puts its trace."""
        return self.folder / "trace.db"

    def clear(self) -> None:
        """Remove what the last contestant wrote."""
        for file in self.folder.glob("trace.db*"):
            file.unlink()
        self.log.unlink(missing_ok=True)

    def command(self, how: Contestant, argv: list[str], user: str | None) -> list[str]:
        """Return the command that runs `argv` in a certain way as `user`."""
        if how in (Contestant.NATIVE, Contestant.PRELOAD):
            return [*(user_prefix(user) if user else ()), *argv]
        return [*self.prefix(how, user), *argv]

    def environment(self, how: Contestant) -> dict[str, str]:
        """Return the environment for such a command."""
        preload = {"LD_PRELOAD": str(self.preload)} if how is Contestant.PRELOAD else {}
        return os.environ | preload

    def prefix(self, how: Contestant, user: str | None) -> list[str]:
        """Return what to put before a command for it to be run so."""
        as_user = ["-u", user] if user else []
        if how in (Contestant.FLAGSHIM, Contestant.NOTIFY):
            engine = ["--engine", "notify"] if how is Contestant.NOTIFY else []
            return [*flagshim_command(), "run", *engine, *as_user, "-o", str(self.trace), "--"]
        if how in (Contestant.STRACE, Contestant.STRACE_BPF):
            bpf = ["--seccomp-bpf"] if how is Contestant.STRACE_BPF else []
            return ["strace", *bpf, *as_user, "-f", "-e", TRACED, "-o", str(self.log), "--"]
        preload = [f"LD_PRELOAD={self.preload}"] if how is Contestant.PRELOAD else []
        return ["env", *preload, *(user_prefix(user) if user else ())]


@contextmanager
def bench() -> Iterator[Bench]:
    """Compile what is needed and lay out the files, in a folder that is gone afterwards.

    Raises:
        FlagshimError: a tool is missing, or a compiler's complaint.
    """
    for tool, package in {"gcc": "gcc", "strace": "strace", "setpriv": "util-linux"}.items():
        if shutil.which(tool) is None:
            raise FlagshimError(f"{tool}: not found", f"run: apt-get install {package}")
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="flagshim-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        refused, owned = folder / "refused" if root else _FOREIGN, folder / "owned"
        for file in {refused, owned} - {_FOREIGN}:
            file.write_text("content\n")
            file.chmod(0o644)
        if root:
            shutil.chown(owned, "nobody")
        yield Bench(
            folder,
            _compiled(HERE / "opener.c", folder / "opener"),
            _compiled(HERE / "preload.c", folder / "preload.so", "-shared", "-fPIC"),
            _compiled(HERE / "spinner.c", folder / "spinner"),
            refused,
            owned,
            "nobody" if root else None,
        )


def _compiled(source: Path, target: Path, *options: str) -> Path:
    command = ["gcc", "-O2", "-o", str(target), str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FlagshimError(f"gcc: {done.stderr.strip()}", "run: apt-get install gcc libc6-dev")
    target.chmod(0o755)
    return target
