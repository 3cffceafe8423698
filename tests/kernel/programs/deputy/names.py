"""Names that mean the process itself, and limits of what a name may lead to."""

import contextlib
import ctypes
import errno
import os
import struct

from acting import (
    O_TMPFILE_ALONE,
    OPENAT2,
    RW,
    R,
    W,
    be_nobody,
    call,
    folder,
    openat2,
    said,
    tried,
    what,
)


def magic() -> None:
    secret = os.open(f"{folder}/secret", os.O_RDONLY)
    os.dup2(secret, 0)
    file = os.open(f"{folder}/file", os.O_RDONLY)
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    locked = os.open(f"{folder}/locked-secret", os.O_PATH | os.O_DIRECTORY)
    os.environ["MARK"] = "1"
    be_nobody()
    path = f"{folder}/file"
    for name in (
        "/proc/self/environ", "/proc/thread-self/environ", "/proc/self/maps", "/proc/self/cmdline",
        f"/proc/self/fd/{secret}", f"/dev/fd/{secret}", f"/proc/thread-self/fd/{secret}",
        "/dev/stdin", "/proc/self/fd/0", f"/proc/self/fd/{file}", f"/dev/fd/{file}",
        f"/proc/self/root{path}", "/proc/self/cwd/file", "/proc/self/cwd/secret",
        f"/proc/self/fd/{directory}/file", f"/proc/self/fd/{directory}/secret",
        f"/proc/self/fd/{locked}/secret", f"/proc/thread-self/root{path}", "/proc/self/exe",
        f"/proc/{os.getpid()}/fd/{secret}", f"/proc/{os.getpid()}/environ", "/proc/self/fd",
        "/proc/self/task", f"/proc/self/../../{path}", "/proc/version", "/proc/self/ns/user",
        "/proc/sys/kernel/core_pattern", "/sys/kernel/mm/transparent_hugepage/enabled",
        "/proc/1/root/etc/passwd", "/proc/1/environ", "/proc/1/fd", "link-to-fd", "link-to-stdin",
        "link-to-environ", "link-to-cwd/secret", "link-to-cwd/file",
    ):  # fmt: skip
        label = name.replace(str(os.getpid()), "PID").replace(folder, "")
        tried(name, label=label)
        tried(name, W, label=label)
    ours = {os.getppid()}  # of the supervisors'
    with contextlib.suppress(OSError):
        for pid in tuple(ours):
            with open(f"/proc/{pid}/task/{pid}/children") as file_:
                ours |= {int(word) for word in file_.read().split()}
    ours -= {os.getpid()}
    for below in ("environ", "root/etc/passwd", "cwd", "exe", "fd", "maps", "mem", "ns/user",
                  "map_files", "auxv", "fdinfo", *(f"fd/{n}" for n in range(3, 23))):  # fmt: skip
        results = set()
        for pid in sorted(ours):
            try:
                fd = os.open(f"/proc/{pid}/{below}", R)
            except OSError as error:
                results.add(errno.errorcode[error.errno or 0])
            else:
                results.add(what(fd))
                os.close(fd)
        # A descriptor that is not there cannot be told from one that may not be looked at.
        print("supervisors", below, "=", " ".join(sorted(results - {"ENOENT"})), flush=True)


def resolve() -> None:
    be_nobody()
    here = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    sub = os.open(f"{folder}/jail/sub", os.O_PATH | os.O_DIRECTORY)
    paths = ("file", f"{folder}/file", "../inner", "jail/relative", "jail/absolute", "jail/chain",
             "jail/climbing", "secret", "/proc/self/cwd/file", "/dev/null", "..", ".", "jail",
             "jail/../file", "link-to-fd", "absent", "jail/relative/", "../../file")  # fmt: skip
    for bits in range(0x40):
        for path in paths:
            for at, name in ((here, "here"), (sub, "sub")):
                label = f"{bits:x} {name} {path.replace(folder, '')}"
                said(label, lambda p=path, b=bits, a=at: openat2(p, R, b, at=a))
        said(f"{bits:x} create", lambda b=bits: openat2("file", R | os.O_CREAT, b, 0o600, here))
        said(f"{bits:x} trunc", lambda b=bits: openat2("writable", RW | os.O_TRUNC, b, 0, here))
    file = f"{folder}/file"
    for label, work in {
        "mode": lambda: openat2(file, R, mode=0o600),
        "bad mode": lambda: openat2(file, R | os.O_CREAT, mode=0o100600),
        "flags": lambda: openat2(file, R | 1 << 31),
        "flags high": lambda: openat2(file, R | 1 << 40),
        "resolve": lambda: openat2(file, R, 0x40),
        "resolve high": lambda: openat2(file, R, 1 << 40),
        "small": lambda: openat2(file, R, size=16),
        "zero": lambda: openat2(file, R, size=0),
        "odd": lambda: openat2(file, R, size=25),
        "tail of zeros": lambda: openat2(file, R, size=64, tail=bytes(64)),
        "tail": lambda: openat2(file, R, size=64, tail=bytes(8) + b"x" + bytes(64)),
        "tail end": lambda: openat2(file, R, size=64, tail=bytes(39) + b"x" + bytes(64)),
        "behind the tail": lambda: openat2(file, R, size=64, tail=bytes(40) + b"x" * 64),
        "huge": lambda: openat2(file, R, size=8192, tail=bytes(8192)),
        "path": lambda: openat2(file, R | os.O_PATH),
        "accmode": lambda: openat2(file, R | os.O_ACCMODE),
        "empty": lambda: openat2("", R),
        "bad directory": lambda: openat2("file", R, at=4711),
        "file as directory": lambda: openat2("file", R, at=os.open(file, os.O_PATH)),
        "tmpfile": lambda: openat2(folder, RW | os.O_TMPFILE, mode=0o600),
        "tmpfile alone": lambda: openat2(folder, RW | O_TMPFILE_ALONE, mode=0o600),
        "create directory": lambda: openat2(file, R | os.O_CREAT | os.O_DIRECTORY, mode=0o600),
        "long": lambda: openat2("/" * 4095, R),
        "too long": lambda: openat2("/" * 4096, R),
        "bad pointer": lambda: call(OPENAT2, -100, file.encode(), 8, 24),
        "bad path": lambda: call(
            OPENAT2, -100, 8, ctypes.create_string_buffer(struct.pack("=QQQ", R, 0, 0)), 24
        ),
    }.items():
        said(label, work)
