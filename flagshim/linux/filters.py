"""seccomp(2): filters, and the listeners of them."""

import ctypes
import os

from flagshim.linux.libc import failure, function, prctl

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2


_ioctl = function(
    "ioctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, restype=ctypes.c_int
)  # fmt: skip
_NR_SECCOMP = {"x86_64": 317, "aarch64": 277}
_address_syscall = function(
    "syscall", ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p
)  # fmt: skip


def device_control(fd: int, request: int, address: int) -> int:
    """Make an ioctl(2) on memory that the kernel is to read or to fill itself.

    fcntl.ioctl() has the kernel fill a buffer of its own, and whoever is killed before that is
    copied has lost it.
    """
    result = _ioctl(fd, request, address)
    if result < 0:
        raise failure()
    return int(result)


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_seccomp_filter(program: bytes) -> None:
    """Install a classic BPF program for this thread and all that come of it.

    Raises:
        PermissionError: without CAP_SYS_ADMIN it takes no_new_privs (seccomp(2), EACCES).
    """
    code = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(code))
    if prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(prog), 0, 0) != 0:
        raise failure()


_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5


def install_seccomp_listener(program: bytes) -> int:
    """Install a classic BPF program like `install_seccomp_filter`, and return its listener.

    Once a call was received from it, only a fatal signal interrupts that
    (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, commit c2aa2dfef243, Linux 5.19).

    Raises:
        PermissionError: without CAP_SYS_ADMIN it takes no_new_privs (seccomp(2), EACCES).
        OSError: EBUSY: we are under a filter that has a listener; EINVAL: an older kernel.
    """
    code = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(code))
    fd = _address_syscall(
        _NR_SECCOMP[os.uname().machine],
        _SECCOMP_SET_MODE_FILTER,
        _SECCOMP_FILTER_FLAG_NEW_LISTENER | _SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        ctypes.addressof(prog),
    )
    if fd < 0:
        raise failure()
    return int(fd)


class _ScmpVersion(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def libseccomp_version() -> str:
    """Return the version of the installed libseccomp, or "?" if there is none."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return "?"
    library.seccomp_version.restype = ctypes.POINTER(_ScmpVersion)
    version = library.seccomp_version().contents
    return f"{version.major}.{version.minor}.{version.micro}"
