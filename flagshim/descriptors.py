"""File descriptors: which were handed to us, and letting go of them."""

import contextlib
import fcntl
import os
from collections.abc import Iterable


def inherited() -> list[int]:
    """Return the descriptors above 2 that an exec would hand on."""
    found = []
    for fd in _open_descriptors():
        with contextlib.suppress(OSError):  # that of the listing itself
            if not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.append(fd)
    return found


def close(descriptors: Iterable[int]) -> None:
    """Close descriptors, and those of them that are closed already."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def close_all_but(*kept: int) -> None:
    """Close every descriptor above 2 that is not to be kept."""
    close(fd for fd in _open_descriptors() if fd not in kept)


def blank(*standard: int) -> None:
    """Put /dev/null in the place of standard descriptors."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in standard:
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def claim_standard() -> None:
    """Have no file of ours become descriptor 0, 1 or 2 where the caller closed one.

    Close-on-exec, so that CMD finds them closed as it would alone.
    """
    while True:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if fd > 2:
            os.close(fd)
            return


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
