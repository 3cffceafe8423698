"""The memory of other processes, process_vm_readv(2), and what a C library points to in ours."""

import ctypes
import os
import struct

from flagshim.linux.libc import address_of, failure, quick_function

_PAGE = os.sysconf("SC_PAGE_SIZE")
_process_vm_readv = quick_function("process_vm_readv")
_process_vm_writev = quick_function("process_vm_writev")
_local_buffer = bytearray(_PAGE)
_local_buffer_at = address_of(_local_buffer)
_local_view = memoryview(_local_buffer)
_iovecs = struct.Struct("=6Q")  # struct iovec of ours, and two of theirs
_iovecs_buffer = bytearray(_iovecs.size)
_iovecs_pack = _iovecs.pack_into
_local_iovec = ctypes.c_void_p(address_of(_iovecs_buffer))
_remote_iovecs = ctypes.c_void_p(address_of(_iovecs_buffer) + 16)
_ADDRESSES = 1 << 64


def read_memory(tid: int, address: int, size: int) -> bytes:
    """Read up to `size` bytes (at most a page), fewer where the next page is not readable.

    Split at the page edge, because a transfer is partial only by whole iovec elements
    (process_vm_readv(2)).
    """
    first = min(size, _PAGE - address % _PAGE)
    second = (address + first) % _ADDRESSES
    _iovecs_pack(_iovecs_buffer, 0, _local_buffer_at, size, address, first, second, size - first)
    parts = 2 if size > first else 1
    count = _process_vm_readv(tid, _local_iovec, 1, _remote_iovecs, parts, 0)
    if count < 0:
        raise failure()
    return _local_view[:count].tobytes()


def write_memory(tid: int, address: int, data: bytes) -> None:
    """Write `data` (at most a page) where the thread itself could write it."""
    size = len(data)
    _local_view[:size] = data
    _iovecs_pack(_iovecs_buffer, 0, _local_buffer_at, size, address, size, 0, 0)
    if _process_vm_writev(tid, _local_iovec, 1, _remote_iovecs, 1, 0) != size:
        raise failure()


def memory_at(address: int, size: int) -> bytes:
    """Copy `size` bytes of our own memory that a C library points to."""
    return ctypes.string_at(address, size)
