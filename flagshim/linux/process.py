"""This process: its name, signals and orphans, and becoming another program."""

import ctypes
import os
import signal
import struct
from collections.abc import Iterable

from flagshim.linux.libc import failure, function, prctl

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = 0xFFFF_FFFF_FFFF_FFFF


_signalfd = function(
    "signalfd", ctypes.c_int, ctypes.c_void_p, ctypes.c_int, restype=ctypes.c_int
)  # fmt: skip


def open_signals(signals: Iterable[int]) -> int:
    """Return a descriptor that can be read while one of these blocked signals is pending.

    signalfd(2), for poll(2) only: sigtimedwait(2) takes the signal.
    """
    # sigset_t of the C library, of which the kernel reads the first 64 bits.
    mask = ctypes.create_string_buffer(128)
    struct.pack_into("=Q", mask, 0, sum(1 << (number - 1) for number in signals))
    fd = _signalfd(-1, ctypes.addressof(mask), os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise failure()
    return int(fd)


_execvpe = function(
    "execvpe", ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_char_p),
    restype=ctypes.c_int,
)  # fmt: skip


def allow_any_tracer(allow: bool) -> None:
    """Let any process of this user trace us, or no longer, where Yama has a say in it."""
    prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY if allow else 0, None, 0, 0)


def die_with_parent() -> None:
    """Have the kernel kill us when our parent ends, even while we are stopped: prctl(2)."""
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, None, 0, 0) != 0:
        raise failure()


def set_name(name: str) -> None:
    """Set what ps(1) shows as the command name of this thread; 15 bytes at most."""
    text = ctypes.create_string_buffer(name.encode()[:15])
    prctl(_PR_SET_NAME, ctypes.addressof(text), None, 0, 0)


def set_title(text: str) -> None:
    """Set what ps(1) shows as arguments of this process, as far as its own left room.

    Only that memory is written to (arg_start and arg_end in proc(5)), not the environment
    behind it.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    # The NUL at the end tells the kernel that the environment is not part of it.
    title = os.fsencode(text)[: end - start - 1].ljust(end - start, b"\0")
    ctypes.memmove(start, title, len(title))


def set_no_new_privs() -> None:
    """Give up set-user-ID and file capabilities for good: prctl(2), PR_SET_NO_NEW_PRIVS."""
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) != 0:
        raise failure()


def execvpe(argv: list[bytes], environment: list[bytes]) -> None:
    """Become `argv`, found through PATH as execvp(3) finds it; returns only by raising.

    `environment` goes through byte for byte, entries without "=" and doubles included,
    which os.execve() cannot do.
    """
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    strings = (ctypes.c_char_p * (len(environment) + 1))(*environment, None)
    _execvpe(argv[0], arguments, strings)
    raise failure()


_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


def set_child_subreaper(on: bool) -> None:
    """Have orphans among our descendants become our children: prctl(2)."""
    if prctl(_PR_SET_CHILD_SUBREAPER, int(on), None, 0, 0) != 0:
        raise failure()


def is_child_subreaper() -> bool:
    """Tell whether orphans among our descendants become our children."""
    on = ctypes.c_int()
    return prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(on), None, 0, 0) == 0 and on.value != 0
