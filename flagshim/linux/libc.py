"""Calls of libc by ctypes: what the other modules here are made of.

Only this package uses ctypes. Its functions raise OSError (a subclass by errno, so a vanished
thread is ProcessLookupError), and it imports nothing of the rest of the project.
"""

import ctypes
import mmap
import os

libc = ctypes.CDLL(None, use_errno=True)


def function(
    name: str, *argtypes: type, restype: type = ctypes.c_long
) -> "ctypes._NamedFuncPointer":
    """Return a function of libc, a new one each time: syscall(2) has several signatures here."""
    found = libc[name]
    found.argtypes = argtypes
    found.restype = restype
    return found


def quick_function(name: str) -> "ctypes._NamedFuncPointer":
    """Return a function for what is done at each open: it takes half the time.

    Without argtypes ctypes converts nothing: arguments are ints that fit a C int, bytes, and
    memory as a c_void_p made beforehand.
    """
    return libc[name]


def failure(what: str = "") -> OSError:
    """Return the error that errno stands for, about a file if that is named."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what or None)


def address_of(memory: mmap.mmap | bytearray) -> int:
    """Return where memory begins, which from now on stays as large as it is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


prctl = function(
    "prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    restype=ctypes.c_int,
)  # fmt: skip


def raw_syscall(number: int, *arguments: int | bytes) -> int:
    """Make a system call by its number; what it writes to a copy of `bytes` is thrown away."""
    syscall = libc["syscall"]
    syscall.restype = ctypes.c_long
    values = (
        ctypes.create_string_buffer(argument, len(argument))
        if isinstance(argument, bytes)
        else ctypes.c_long(argument)
        for argument in arguments
    )
    result = int(syscall(ctypes.c_long(number), *values))
    if result < 0:
        raise failure()
    return result
