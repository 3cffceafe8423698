"""Roots and mounts of the program alone."""

import os

from acting import (
    CLONE_NEWNS,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    RW,
    R,
    W,
    be_nobody,
    folder,
    mount,
    openat2,
    said,
    tried,
    unshare,
)


def chroot() -> None:
    """What leads out of the jail must not lead into the supervisor's root."""
    out = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    os.chroot(f"{folder}/jail")
    os.chdir("/sub")
    be_nobody()
    climb = "../../../../../../../../.."
    for path in (
        "/inner", "../inner", f"{climb}/inner", "inner", "/absolute", "../absolute", "/climbing",
        "../climbing", "/chain", "below", "relative-below", "/sub/relative-below",
        f"{climb}{folder}/outside", f"{folder}/outside", "../outside",
        "/proc/self/status", "/sub/../../inner", "../relative", "/secret", "/to-secret", ".", "/",
        "../hidden/inner", "/etc/passwd", f"{climb}/etc/passwd",
    ):  # fmt: skip
        tried(path)
        tried(path, W)
        tried(path, RW | os.O_CREAT)
        tried(path, R | os.O_NOFOLLOW)
        for resolve in (0x08, 0x10, 0x01, 0x04):
            said(f"{path} {resolve:x}", lambda p=path, r=resolve: openat2(p, R, r))
    for path in ("outside", "secret", "jail/absolute", "jail/../outside", "../etc/passwd"):
        tried(path, dir_fd=out, label=f"out {path}")
        tried(path, RW | os.O_CREAT, dir_fd=out, label=f"out {path}")
    os.chdir("/")
    os.fchdir(out)  # a working directory outside of the root
    for path in ("outside", "secret", "jail/absolute", "jail/../outside", "../../etc/passwd"):
        tried(path)


def mounts() -> None:
    """A file that is mounted over for the program alone is not the host's."""
    before = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    unshare(CLONE_NEWNS)
    mount("none", "/", MS_REC | MS_PRIVATE)
    mount(f"{folder}/other", f"{folder}/file", MS_BIND)
    mount(f"{folder}/jail", f"{folder}/locked", MS_BIND)
    mount(f"{folder}/locked-secret", f"{folder}/open", MS_BIND)
    mount(f"{folder}/secret", f"{folder}/outside", MS_BIND)
    be_nobody()
    names = ("file", "locked/inner", "locked/sub/../inner", "open/secret", "outside", "other",
             "jail/../file", "jail/absolute", "locked/absolute", "jail/to-secret")  # fmt: skip
    for name in names:
        tried(f"{folder}/{name}")
        tried(f"{folder}/{name}", RW | os.O_CREAT)
        tried(name, dir_fd=before, label=f"before {name}")
        tried(name, label=f"from here {name}")
