"""Threads and processes by pidfd (pidfd_open(2))."""

import ctypes
import fcntl
import os
import struct

from flagshim.linux.libc import failure, function

_NR_PIDFD_GETFD = 438  # the same on every architecture
_PIDFD_THREAD = os.O_EXCL
_pidfd_getfd = function("syscall", ctypes.c_int, ctypes.c_int, ctypes.c_uint)


def open_thread(tid: int) -> int:
    """Return a pidfd for one thread.

    Raises:
        OSError: EINVAL: the kernel has them for thread groups only, before Linux 6.9.
    """
    return os.pidfd_open(tid, _PIDFD_THREAD)


def duplicate_of(pidfd: int, fd: int) -> int:
    """Return a duplicate of another thread's descriptor: pidfd_getfd(2)."""
    duplicate = _pidfd_getfd(_NR_PIDFD_GETFD, pidfd, fd, 0)
    if duplicate < 0:
        raise failure()
    return int(duplicate)


_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_CREDS = 1 << 1
_PIDFD_INFO_EXIT = 1 << 3
# struct pidfd_info, linux/pidfd.h, in its first version: mask, cgroupid, pid, tgid, ppid, real,
# effective, saved and filesystem uid and gid, exit_code.
_pidfd_info = struct.Struct("=QQ3I8Ii")
_pidfd_asks_creds = _pidfd_info.pack(_PIDFD_INFO_CREDS, *[0] * 13)


_pidfd_ids = struct.Struct("=20xI12xII8xII4x")  # of these tgid, euid, egid, fsuid, fsgid


def ids_of(pidfd: int) -> tuple[int, int, int, int, int]:
    """Return the thread group ID, euid, egid, fsuid and fsgid of a thread, credentials(7).

    Raises:
        ProcessLookupError: it has ended.
        OSError: the kernel does not tell: before Linux 6.13.
    """
    return _pidfd_ids.unpack(fcntl.ioctl(pidfd, _PIDFD_GET_INFO, _pidfd_asks_creds))


def wait_status_of(pidfd: int) -> int | None:
    """Return the wait status of a process that has ended and was reaped by its parent.

    None where the kernel does not tell: before Linux 6.15.
    """
    asks = _pidfd_info.pack(_PIDFD_INFO_EXIT, *[0] * 13)
    try:
        info = _pidfd_info.unpack(fcntl.ioctl(pidfd, _PIDFD_GET_INFO, asks))
    except OSError:
        return None
    return int(info[-1]) if info[0] & _PIDFD_INFO_EXIT else None
