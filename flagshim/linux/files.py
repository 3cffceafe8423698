"""Files: openat2(2), statx(2), handles, mostly without waiting for their filesystem."""

import ctypes
import os
import struct
from typing import Final, NamedTuple

from flagshim.linux.libc import address_of, failure, function, quick_function
from flagshim.linux.tuples import new_tuple

AT_FDCWD: Final = -100


_NR_OPENAT2 = 437  # the same on every architecture
_RESOLVE_CACHED = 0x20
_O_PATH = os.O_PATH
_O_CLOEXEC = os.O_CLOEXEC
_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_UID = 0x8
_syscall = quick_function("syscall")
_statx = quick_function("statx")
_open_how = struct.Struct("=3Q")  # flags, mode, resolve
_how_pack = _open_how.pack_into
_how = bytearray(_open_how.size)
_how_at = ctypes.c_void_p(address_of(_how))
_statx_buffer = bytearray(256)
_statx_buffer_at = ctypes.c_void_p(address_of(_statx_buffer))
_statx_uid = struct.Struct("=I").unpack_from  # stx_uid is at byte 20, linux/stat.h


RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = _RESOLVE_CACHED
"""Of openat2(2)."""


def openat2(directory: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """Open a file as openat2(2) does, and return its descriptor."""
    _how_pack(_how, 0, flags, mode, resolve)
    fd: int = _syscall(_NR_OPENAT2, directory, path, _how_at, _open_how.size)
    if fd < 0:
        raise failure()
    return fd


class FileFacts(NamedTuple):
    """What statx(2) tells of an open file without asking its filesystem."""

    owner: int
    """Its uid, as the mount shows it."""
    mode: int
    """Type and permissions."""
    inode: int
    size: int
    mount: int | None
    """An ID that no other mount ever has (STATX_MNT_ID_UNIQUE); None before Linux 6.8."""


_STATX_FACTS = 0x1 | 0x2 | _STATX_UID | 0x100 | 0x200 | 0x4000
_STATX_MNT_ID_UNIQUE = 0x4000
# struct statx, linux/stat.h: stx_uid, stx_mode, stx_ino, stx_size, stx_mnt_id.
_statx_facts = struct.Struct("=20xI4xH2xQQ96xQ").unpack_from


def facts_of(directory: int, path: bytes = b"") -> FileFacts:
    """Look at a file, or at the one a descriptor is open on."""
    flags = _AT_STATX_DONT_SYNC | _AT_EMPTY_PATH
    if _statx(directory, path, flags, _STATX_FACTS, _statx_buffer_at) < 0:
        raise failure()
    facts = new_tuple(FileFacts, _statx_facts(_statx_buffer))
    if not _statx_buffer[1] & _STATX_MNT_ID_UNIQUE >> 8:  # in stx_mask
        return facts._replace(mount=None)
    return facts


_fstatfs = function("fstatfs", ctypes.c_int, ctypes.c_void_p, restype=ctypes.c_int)


def filesystem_type(fd: int) -> int:
    """Return the f_type of statfs(2), which may ask the filesystem, and wait for it."""
    if _fstatfs(fd, _statx_buffer_at) < 0:
        raise failure()
    return int.from_bytes(_statx_buffer[:4], "little")


_open_by_handle_at = function(
    "open_by_handle_at", ctypes.c_int, ctypes.c_void_p, ctypes.c_int, restype=ctypes.c_int
)


def open_by_handle_at(mount: int, handle: bytes, flags: int) -> int:
    """Open a file by its handle, open_by_handle_at(2).

    Args:
        mount: a descriptor of anything on its mount.
        handle: struct file_handle, whole.
        flags: open flags.
    """
    buffer = ctypes.create_string_buffer(handle, len(handle))
    fd = _open_by_handle_at(mount, ctypes.addressof(buffer), flags)
    if fd < 0:
        raise failure()
    return int(fd)


def owner_if_cached(directory: int, path: bytes, follow: bool) -> int | None:
    """Return the owner (uid) of `path` if the kernel has it in memory, else None.

    Args:
        directory: where a relative path starts, or AT_FDCWD.
        path: of the file.
        follow: whether the last component may be a symbolic link.

    RESOLVE_CACHED (Linux 5.12, openat2(2)) fails where the lookup would have to ask a
    filesystem. That matters: a FUSE server may be one of the processes that are
    waiting for us, and then the answer would never come.
    """
    flags = _O_PATH | _O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    _how_pack(_how, 0, flags, 0, _RESOLVE_CACHED)
    fd = _syscall(_NR_OPENAT2, directory, path, _how_at, _open_how.size)
    if fd < 0:
        return None
    flags = _AT_STATX_DONT_SYNC | _AT_EMPTY_PATH
    status = _statx(fd, b"", flags, _STATX_UID, _statx_buffer_at)
    os.close(fd)
    return None if status < 0 else int(_statx_uid(_statx_buffer, 20)[0])


def owner(path: bytes) -> int:
    """Return the owner (uid) of a file as its filesystem last told, without asking it again."""
    if _statx(AT_FDCWD, path, _AT_STATX_DONT_SYNC, _STATX_UID, _statx_buffer_at) < 0:
        raise failure()
    return int(_statx_uid(_statx_buffer, 20)[0])


_STATX_MNT_ID = 0x1000
_STATX_ATTRIBUTES = {0x10: "immutable", 0x20: "append-only", 0x100000: "fs-verity"}
# struct statx, linux/stat.h: stx_attributes, stx_uid, stx_dev_minor, stx_mnt_id (Linux 5.8)
_statx_inode = struct.Struct("=8xQ4xI116xIQ").unpack_from


class Inode(NamedTuple):
    """What statx(2) tells of a file."""

    owner: int
    attributes: frozenset[str]
    """immutable, append-only, fs-verity."""
    device_minor: int
    """Of its filesystem; for FUSE the number of the connection."""
    mount_id: int
    """As the first column of /proc/PID/mountinfo; 0 before Linux 5.8."""


def inode_of(path: bytes, follow: bool) -> Inode:
    """Look at a file, with what its filesystem last told where that will do."""
    flags = _AT_STATX_DONT_SYNC | (0 if follow else _AT_SYMLINK_NOFOLLOW)
    if _statx(AT_FDCWD, path, flags, _STATX_UID | _STATX_MNT_ID, _statx_buffer_at) < 0:
        raise failure()
    attributes, owner_uid, minor, mount_id = _statx_inode(_statx_buffer)
    names = frozenset(name for bit, name in _STATX_ATTRIBUTES.items() if attributes & bit)
    return Inode(owner_uid, names, minor, mount_id)
