"""Path arguments, as they lie in the memory of a process."""

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from flagshim.linux.libc import address_of
from flagshim.tracee import PATH_MAX, read_path

PAGE = mmap.PAGESIZE


@pytest.fixture
def end() -> Iterator[tuple[mmap.mmap, int]]:
    """Two pages, and the address where they end: what is behind cannot be read."""
    memory = mmap.mmap(-1, 3 * PAGE)
    end = address_of(memory) + 2 * PAGE
    protect = ctypes.CDLL(None).mprotect
    assert protect(ctypes.c_void_p(end), ctypes.c_size_t(PAGE), 0) == 0
    yield memory, end
    protect(ctypes.c_void_p(end), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("size", [1, 101, 255, 256, 257, 307, PATH_MAX - 1])
@pytest.mark.parametrize("ends", [True, False])
def test_at_the_end_of_what_can_be_read(end: tuple[mmap.mmap, int], size: int, ends: bool) -> None:
    """Without a NUL the call will fail with EFAULT, whatever was before."""
    memory, address = end
    memory[2 * PAGE - size : 2 * PAGE] = b"a" * (size - ends) + bytes(ends)
    assert read_path(os.getpid(), address - size) == (b"a" * (size - 1) if ends else None)


def test_too_long(end: tuple[mmap.mmap, int]) -> None:
    memory, address = end
    memory[: 2 * PAGE] = b"a" * 2 * PAGE
    found = read_path(os.getpid(), address - 2 * PAGE)
    assert found == b"a" * PATH_MAX, "ENAMETOOLONG is for the kernel to say"
