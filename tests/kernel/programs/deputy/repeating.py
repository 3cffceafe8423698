"""Calls that are like others before."""

import ctypes
import os
import resource
import struct

from acting import (
    CLONE_NEWNS,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    NOBODY,
    SETFSGID,
    SETFSUID,
    R,
    W,
    aside,
    call,
    folder,
    libc,
    mount,
    tried,
    unshare,
)
from confinement import restrict
from users import GROUPS


def as_(uid: int, gid: int = 0) -> None:
    """Be somebody for now; without setgroups(2), after which each thread is looked at anew."""
    os.setresuid(0, 0, 0)
    os.setresgid(0, gid, 0)
    os.setresuid(0, uid, 0)


def again() -> None:
    """Just like those before, while one thing at a time is not as it was."""
    a, b, _ = GROUPS
    paths = (
        "file", "file", "of-1-secret", "of-1", "mine", "secret", "of-a", "denied-a", "dir-a/inner",
        "jail", "absent", "file/x", "jail/absolute", "link-to-environ", "link-to-fd", "link-to-cwd",
        "link-to-fifo", "fifo", "null", "zero", "full", "socket", "/proc/version", "",
    )  # fmt: skip

    def each(label: str) -> None:
        for path in paths:
            tried(path, R | os.O_NONBLOCK, label=f"{label} {path}")
            tried(path, R | os.O_NONBLOCK | os.O_NOFOLLOW, label=f"{label} {path}")
            tried(path, R | os.O_NONBLOCK | os.O_DIRECTORY, label=f"{label} {path}")
            tried(path, W | os.O_NONBLOCK | os.O_CLOEXEC, label=f"{label} {path}")

    for uid, gid in ((1, 0), (2, 0), (1, a), (2, a), (1, b), (NOBODY, 0), (1, 0), (0, 0), (1, 0)):
        as_(uid, gid)
        each(f"{uid} {gid}")
    for fsuid, fsgid in ((1, 0), (2, a), (1, a)):
        as_(0)
        call(SETFSGID, fsgid)
        call(SETFSUID, fsuid)
        each(f"fs {fsuid} {fsgid}")
    for capability in (2, 3, None, 1, None):  # DAC_READ_SEARCH, FOWNER, DAC_OVERRIDE
        as_(1)
        _have_effective(0 if capability is None else 1 << capability)
        each(f"capability {capability}")
    as_(1)
    for where in ("jail", "dir-set-a", ".", "dir-a"):
        as_(0)
        os.chdir(f"{folder}/{where}")
        as_(1)
        tried("inner", label=f"in {where} inner")
    os.chdir(folder)
    at = os.open("jail", os.O_RDONLY)
    for where in ("jail", "jail/sub", "file", None):
        if where is None:
            os.close(at)
        else:
            other = os.open(where, os.O_RDONLY)
            os.dup2(other, at)
            os.close(other)
        for name in ("inner", "below", "../file", f"{folder}/file"):
            tried(name, dir_fd=at, label=f"at {where} {name}")
    aside(_in_another_root)
    aside(_under_another_mount)
    aside(lambda: (tried(f"{folder}/file"), tried(f"{folder}/file"), restrict(),
                   tried(f"{folder}/file", label="confined: file")))  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    tried(f"{folder}/file", label="no room")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _have_effective(capabilities: int) -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    now = ctypes.create_string_buffer(24)
    libc.capget(header, now)
    _, low, _, _, high, _ = struct.unpack("=6I", now.raw[:24])
    if libc.capset(header, struct.pack("=6I", capabilities, low, 0, 0, high, 0)):
        raise OSError(ctypes.get_errno(), "capset")


def _in_another_root() -> None:
    for _ in range(3):
        tried(f"{folder}/outside")
    as_(0)
    os.chroot(f"{folder}/jail")
    as_(1)
    for _ in range(3):
        tried(f"{folder}/outside", label="jailed")
    tried("/inner", label="jailed inner")


def _under_another_mount() -> None:
    for _ in range(3):
        tried(f"{folder}/file")
    as_(0)
    unshare(CLONE_NEWNS)
    mount("none", "/", MS_REC | MS_PRIVATE)
    mount(f"{folder}/secret", f"{folder}/file", MS_BIND)
    mount(f"{folder}/of-1-secret", f"{folder}/other", MS_BIND)
    as_(1)
    for _ in range(3):
        tried(f"{folder}/file", label="mounted file")
        tried(f"{folder}/other", label="mounted other")
