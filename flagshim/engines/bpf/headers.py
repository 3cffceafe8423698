"""Kernel headers for bcc's compiler: those of the running kernel, or any that are there.

The programs touch no structure of the kernel but struct pt_regs, so the headers of another
version serve. Nothing is written for it: bcc is told by $BCC_KERNEL_SOURCE and -I.
"""

import functools
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from flagshim.errors import FlagshimError

_VARIABLE = "BCC_KERNEL_SOURCE"
_OWN_ARCHIVE = "/sys/kernel/kheaders.tar.xz"
_DEBIAN_COMMON = "-common"


@functools.cache
def point_bcc_at_headers(
    modules: Path = Path("/lib/modules"), sources: Path = Path("/usr/src")
) -> tuple[str, ...]:
    """Have bcc find kernel headers; return what its compiler needs to be told besides.

    Args:
        modules: where the running kernel's own would be.
        sources: where distributions put those of all kernels.

    Raises:
        FlagshimError: there are none.
    """
    own = modules / platform.release()
    if (
        os.environ.get(_VARIABLE)
        or any(_is_complete(own / name) or _has_headers(own / name) for name in ("build", "source"))
        or os.path.exists(_OWN_ARCHIVE)
    ):
        return ()
    for folder in _newest_first(sources):
        if _is_complete(folder):
            os.environ[_VARIABLE] = str(folder)
            return ()
        if folder.name.endswith(_DEBIAN_COMMON):
            rest = _generated(folder)
            if rest is not None:
                os.environ[_VARIABLE] = str(folder)
                arch = rest / "arch/x86/include"
                return tuple(
                    f"-I{path}"
                    for path in (
                        rest / "include",
                        rest / "include/generated/uapi",
                        arch / "generated",
                        arch / "generated/uapi",
                    )
                )
    raise FlagshimError(
        "bcc needs kernel headers, of whatever version, and there are none",
        "apt-get install linux-headers-amd64, or set BCC_KERNEL_SOURCE to a folder of them",
    )


def _newest_first(sources: Path) -> Iterator[Path]:
    folders = [*sources.glob("linux-headers-*"), *sources.glob("kernels/*")]
    yield from sorted(folders, key=_version, reverse=True)


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.name)]


def _has_headers(folder: Path) -> bool:
    return (folder / "include/linux").is_dir()


def _is_complete(folder: Path) -> bool:
    return _has_headers(folder) and (folder / "include/generated/autoconf.h").exists()


def _generated(common: Path) -> Path | None:
    """Return the folder with the generated half of Debian's headers, of one architecture."""
    stem = common.name.removesuffix(_DEBIAN_COMMON)
    halves = (common.with_name(f"{stem}-{flavour}") for flavour in ("amd64", "cloud-amd64"))
    return next((half for half in halves if (half / "include/generated").is_dir()), None)
