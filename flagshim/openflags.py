"""Names and bits of the flags of open(2), which differ between architectures."""

import errno
import os
from typing import NamedTuple

# include/uapi/asm-generic/fcntl.h; x86 uses it as it is, and so does i386.
_GENERIC = {
    "O_CREAT": 0o100,
    "O_EXCL": 0o200,
    "O_NOCTTY": 0o400,
    "O_TRUNC": 0o1000,
    "O_APPEND": 0o2000,
    "O_NONBLOCK": 0o4000,
    "O_SYNC": 0o4010000,
    "O_DSYNC": 0o10000,
    "O_ASYNC": 0o20000,
    "O_DIRECT": 0o40000,
    "O_LARGEFILE": 0o100000,
    "O_TMPFILE": 0o20200000,
    "O_DIRECTORY": 0o200000,
    "O_NOFOLLOW": 0o400000,
    "O_NOATIME": 0o1000000,
    "O_CLOEXEC": 0o2000000,
    "O_PATH": 0o10000000,
}
# arch/arm64/include/uapi/asm/fcntl.h
_ARM = _GENERIC | {
    "O_TMPFILE": 0o20040000,
    "O_DIRECTORY": 0o40000,
    "O_NOFOLLOW": 0o100000,
    "O_DIRECT": 0o200000,
    "O_LARGEFILE": 0o400000,
}
_BITS = {"x86_64": _GENERIC, "i686": _GENERIC, "aarch64": _ARM}
_ACCESS = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")

O_ACCMODE = os.O_ACCMODE


class Clearable(NamedTuple):
    """A flag that may be taken off a call without changing what the call means."""

    name: str
    refusal: int | None
    """The errno with which the kernel refuses an open for this flag; None if it never does."""


CLEARABLE = {
    flag.name: flag
    for flag in (
        Clearable("O_NOATIME", errno.EPERM),  # may_open() in fs/namei.c
        Clearable("O_DIRECT", errno.EINVAL),  # do_dentry_open() in fs/open.c
        Clearable("O_SYNC", None),
        Clearable("O_DSYNC", None),
    )
}


def bits_of(name: str, machine: str) -> int:
    """Return the bits of a flag on `machine` (as uname(2) names it).

    Raises:
        KeyError: no such flag, or no table for that machine.
    """
    return _BITS[machine][name]


def known_machine(machine: str) -> bool:
    """Tell whether there is a table for `machine`."""
    return machine in _BITS


def known_flag(name: str) -> bool:
    """Tell whether open(2) knows a flag, or access mode, of that name."""
    return name in _GENERIC or name in _ACCESS


def is_set(name: str, flags: int, machine: str) -> bool:
    """Tell whether a flag is set; O_DSYNC is not where O_SYNC, which contains it, is."""
    bits = bits_of(name, machine)
    if name == "O_DSYNC" and is_set("O_SYNC", flags, machine):
        return False
    return flags & bits == bits


def flag_names(flags: int, machine: str) -> str:
    """Spell out open flags: "O_RDONLY|O_NOATIME"; bits without a name in hexadecimal."""
    names = [_ACCESS[flags & O_ACCMODE]]
    rest = flags & ~O_ACCMODE
    # O_SYNC contains O_DSYNC, O_TMPFILE contains O_DIRECTORY: the larger first.
    for name, bits in sorted(_BITS[machine].items(), key=lambda item: -item[1].bit_count()):
        if rest & bits == bits:
            names.append(name)
            rest &= ~bits
    if rest:
        names.append(hex(rest))
    return "|".join(names)


def access_mode(flags: int) -> str:
    """Return r, w or rw; open(2) leaves 3 for ioctl only, shown as "-"."""
    return ("r", "w", "rw", "-")[flags & O_ACCMODE]
