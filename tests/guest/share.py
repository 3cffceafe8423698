"""The folder a guest gets: files of root that QEMU's user may read but does not own."""

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flagshim.errors import FlagshimError

from .cache import demand_traversable
from .image import BUSYBOX, static_busybox

FILES = 503
"""A prime, so that one file too many or too few cannot hide in a multiple."""
PARALLEL_FILES = 31
PARALLEL_READERS = 7
"""As in `init`."""

SECOND_FILES = 101

NAMES = ("with space", "with\nnewline", "with\ttab", "über-日本-ф", "-dash", "quote'\"$(x)\\", "*")

EDITED = (
    "appended",
    "chmodded",
    "overwritten",
    "renamed",
    "replaced",
    "unlinked",
    "written",
)


def make_share(folder: Path, files: int = FILES) -> None:
    """Fill a folder with what `init` reads, writes over and checks against its checksums.

    A folder that was filled before is filled again with the same.

    Args:
        folder: made if it does not exist; every user must be able to get there.
        files: how many small files folder/files holds.

    Raises:
        FlagshimError: not root, or a folder on the way is closed to others.
    """
    if os.geteuid() != 0:
        raise FlagshimError("only root can make files that root owns", "run as root")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    demand_traversable(folder)
    noise = random.Random(FILES)
    sizes = (0, 1, 4095, 4096, 4097, 9000)
    small = {f"files/{at:05}": noise.randbytes(sizes[at % len(sizes)]) for at in range(files)}
    parallel = {f"parallel/{at:02}": noise.randbytes(6007) for at in range(PARALLEL_FILES)}
    large = {"large": noise.randbytes((5 << 20) + FILES)}
    for name, contents in (("files", small), ("parallel", parallel), ("large", large)):
        _write(folder, f"expected/{name}", _sums(contents))
        for at, content in contents.items():
            _write(folder, at, content)
    for name in EDITED:
        _write(folder, f"edit/{name}", f"lower {name}\n".encode())
    for name in NAMES:
        _write(folder, f"names/{name}", f"{name}\n".encode())
    _write(folder, "text", b"lower text\n")
    (folder / "link").unlink(missing_ok=True)
    (folder / "link").symlink_to("text")
    _write(folder, "bin/script", b'#!/bin/sh\necho "script: $*"\n', 0o755)
    _write(folder, f"bin/{BUSYBOX.name}", static_busybox(), 0o755)


def make_second_share(folder: Path) -> None:
    """Fill a folder with what `init` expects of a second share."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    noise = random.Random(SECOND_FILES)
    contents = {f"second/{at:03}": noise.randbytes(1009 + at) for at in range(SECOND_FILES)}
    _write(folder, "expected/second", _sums(contents))
    for name, content in contents.items():
        _write(folder, name, content)


@contextmanager
def share(files: int = FILES) -> Iterator[Path]:
    """A share in a temporary folder that QEMU's user can enter, gone when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="flagshim-share-"))
    try:
        make_share(folder, files)
        yield folder
    finally:
        shutil.rmtree(folder)


def _sums(contents: Mapping[str, bytes]) -> bytes:
    """Their checksums, as sha256sum(1) writes and reads them."""
    lines = (f"{hashlib.sha256(text).hexdigest()}  {at}\n" for at, text in contents.items())
    return "".join(lines).encode()


def _write(folder: Path, name: str, content: bytes, mode: int = 0o644) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.parent.chmod(0o755)
    path.write_bytes(content)
    path.chmod(mode)
    os.chown(path, 0, 0)
