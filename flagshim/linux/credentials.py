"""Whom a thread acts as: credentials(7), capabilities(7)."""

import ctypes
import errno
import os
import struct

from flagshim.linux.libc import address_of, failure, function, prctl, quick_function

_setfsuid = function("setfsuid", ctypes.c_uint, restype=ctypes.c_int)
_setfsgid = function("setfsgid", ctypes.c_uint, restype=ctypes.c_int)
_NOBODY_AT_ALL = 0xFFFF_FFFF
_capset = quick_function("capset")
_capget = quick_function("capget")
# struct __user_cap_header_struct with _LINUX_CAPABILITY_VERSION_3, then a thread or 0.
_cap_header = struct.Struct("=Ii")
_CAP_VERSION = 0x20080522
_cap_whose = bytearray(_cap_header.size)
_cap_whose_at = ctypes.c_void_p(address_of(_cap_whose))
_cap_sets = struct.Struct("=6I")  # effective, permitted, inheritable; the upper halves
_cap_data = bytearray(_cap_sets.size)
_cap_data_at = ctypes.c_void_p(address_of(_cap_data))
_LOW = 0xFFFF_FFFF


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Set our own capability sets, bit N for capability N: capset(2)."""
    _cap_header.pack_into(_cap_whose, 0, _CAP_VERSION, 0)
    _cap_sets.pack_into(
        _cap_data, 0,
        effective & _LOW, permitted & _LOW, inheritable & _LOW,
        effective >> 32, permitted >> 32, inheritable >> 32,
    )  # fmt: skip
    if _capset(_cap_whose_at, _cap_data_at) < 0:
        raise failure()


def capabilities_of(tid: int) -> tuple[int, int, int]:
    """Return the (effective, permitted, inheritable) capabilities of a thread: capget(2).

    Raises:
        ProcessLookupError: there is none.
    """
    _cap_header.pack_into(_cap_whose, 0, _CAP_VERSION, tid)
    if _capget(_cap_whose_at, _cap_data_at) < 0:
        raise failure()
    e, p, i, effective, permitted, inheritable = _cap_sets.unpack(_cap_data)
    return effective << 32 | e, permitted << 32 | p, inheritable << 32 | i


_PR_GET_SECUREBITS = 27


def secure_bits() -> int:
    """Return what changes of IDs do to our capabilities other than usual (capabilities(7))."""
    return int(prctl(_PR_GET_SECUREBITS, 0, None, 0, 0))


def set_filesystem_ids(uid: int, gid: int) -> None:
    """Set fsuid and fsgid, credentials(7), apart from the effective IDs.

    Raises:
        PermissionError: they may not be set; setfsuid(2) itself does not say so.
    """
    _setfsgid(gid)
    _setfsuid(uid)
    if _setfsgid(_NOBODY_AT_ALL) != gid or _setfsuid(_NOBODY_AT_ALL) != uid:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
