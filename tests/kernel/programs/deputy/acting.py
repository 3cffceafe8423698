"""What the scenes are made of: being somebody, opening files, and saying what came of it."""

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable

NOBODY = 65534
SETRESUID, SETRESGID, SETFSUID, SETFSGID, SETGROUPS, CLONE = 117, 119, 122, 123, 116, 56
OPENAT2, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 437, 444, 445, 446
CLONE_PARENT, CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x8000, 0x20000, 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
O_TMPFILE_ALONE = os.O_TMPFILE & ~os.O_DIRECTORY
NO_MOUNTS = 77

scene, flag, folder = sys.argv[1:]
N = os.O_NOATIME if flag == "noatime" else 0
R, W, RW = os.O_RDONLY | N, os.O_WRONLY | N, os.O_RDWR | N
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(number: int, *arguments: object) -> int:
    """Make a system call by this thread alone, which libc and Python would not."""
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return int(result)


def what(fd: int) -> str:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        return f"a directory, {os.fstat(fd).st_size > 0}"
    if not stat.S_ISREG(mode):
        return "special"
    try:
        return repr(os.pread(fd, 8, 0))
    except OSError as error:
        return f"{errno.errorcode[error.errno or 0]} of {os.fstat(fd).st_size}"


def said(label: str, open_: Callable[[], int]) -> str:
    try:
        fd = open_()
    except OSError as error:
        text = errno.errorcode[error.errno or 0]
    else:
        text = what(fd)
        os.close(fd)
    print(label, "=", text, flush=True)
    return text


def tried(path: str, flags: int = R, dir_fd: int | None = None, label: str = "") -> str:
    return said(
        f"{label or path.removeprefix(folder)} {flags & ~N:o}",
        lambda: os.open(path, flags, 0o600, dir_fd=dir_fd),
    )


def be(uid: int, gid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def be_nobody() -> None:
    be(NOBODY, NOBODY, [])


def aside(work: Callable[[], object]) -> None:
    """Do something in a child."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    if status:
        print("child", status)


def unshare(flags: int) -> None:
    if libc.unshare(flags):
        sys.exit(NO_MOUNTS)


def mount(source: str, target: str, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), None, flags, None):
        sys.exit(NO_MOUNTS)


def openat2(
    path: str, flags: int, resolve: int = 0, mode: int = 0, at: int = -100,
    size: int = 24, tail: bytes = b"",
) -> int:  # fmt: skip
    how = ctypes.create_string_buffer(struct.pack("=QQQ", flags, mode, resolve) + tail)
    return call(OPENAT2, at, path.encode(), how, size)
