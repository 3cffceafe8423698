"""Where downloaded kernels and built programs are kept between runs, outside the tree."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flagshim.cli.output import Progress
from flagshim.errors import FlagshimError


def root() -> Path:
    """The cache folder: $FLAGSHIM_CACHE, or where such things go for root and for others."""
    if chosen := os.environ.get("FLAGSHIM_CACHE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/flagshim")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flagshim"


def folder(*names: str) -> Path:
    """A folder below root(), made if need be, that every user may enter."""
    path = root()
    path.mkdir(parents=True, exist_ok=True)
    for part in ("", *names):
        path = path / part
        path.mkdir(exist_ok=True)
        readable(path)
    demand_traversable(path)
    return path


def readable(path: Path) -> None:
    """Give every user the access to a file or folder that its owner has, but for writing."""
    mode = path.stat().st_mode & 0o7777
    wanted = mode | 0o444 | (0o111 if mode & 0o100 else 0)
    if wanted != mode:
        path.chmod(wanted)


def demand_traversable(path: Path) -> None:
    """Fail where a folder on the way is closed to QEMU's user.

    Raises:
        FlagshimError: naming the first such folder.
    """
    for parent in reversed((path, *path.parents)):
        if not parent.stat().st_mode & 0o001:
            raise FlagshimError(
                f"{parent} is closed to other users, and QEMU runs as one",
                "set FLAGSHIM_CACHE and TMPDIR to folders that everyone may enter",
            )


@contextmanager
def built(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` when the block ends, and vanishes if it fails.

    An interrupted build leaves nothing under the name of a finished one. Of two
    builders at a time the first wins: the other's work is thrown away.
    """
    for left in target.parent.glob(".building-*"):  # of a builder that was killed
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as scratch:
        result = Path(scratch, target.name)
        result.mkdir()
        with _shown(f"making {target}, once"):
            yield result
        try:
            result.rename(target)
        except OSError:
            if not target.is_dir():
                raise


@contextmanager
def _shown(what: str) -> Iterator[None]:
    """Show on a terminal that work goes on: it waits for apt and compilers, and cannot tell."""
    done = threading.Event()
    with Progress(what) as progress:
        tick = progress.tick
        if tick is None:
            yield
            return

        def go_on() -> None:
            while not done.wait(0.2):
                tick()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def write(path: Path, content: bytes) -> None:
    """Write a file that is either complete or not there, readable by all."""
    with tempfile.NamedTemporaryFile(prefix=".writing-", dir=path.parent, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.close()
            temporary.chmod(0o644)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
