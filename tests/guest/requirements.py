"""What this machine lacks for a guest, found out by trying."""

import functools
import os
import platform
import shutil
import subprocess

from flagshim.errors import FlagshimError

from .image import static_busybox
from .vm import DEBIAN_QEMU, unpatched_qemu, user_prefix

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "strace": "strace",
    "apt-get": "apt",
    "dpkg": "dpkg",
    "zstd": "zstd",
}
"""Programs by the Debian packages they are in."""


@functools.cache
def obstacle() -> str | None:
    """Why no guest can be booted here, with the way out; None if one can."""
    if platform.machine() != "x86_64":
        return (
            f"a guest is x86-64 and takes its busybox from the host, which is {platform.machine()}"
        )
    missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    try:
        static_busybox()
    except FlagshimError:
        missing.add("busybox-static")
    if missing:
        return f"packages are missing; run: apt-get install {' '.join(sorted(missing))}"
    if os.geteuid() != 0:
        return "only root can share files that QEMU's user does not own; run as root"
    return _does_not_start(DEBIAN_QEMU)


@functools.cache
def unpatched_obstacle() -> str | None:
    """Why the QEMU without its fallback cannot be used; None if it can."""
    if not os.path.exists(unpatched_qemu()[0]):
        return "there is no QEMU without its O_NOATIME fallback; run: make qemu-unpatched"
    return obstacle() or _does_not_start(unpatched_qemu())


def _does_not_start(qemu: tuple[str, ...]) -> str | None:
    """Start a QEMU without a machine, as its user, with a 9p share, and tell it to quit."""
    arguments = [
        "-accel", "tcg",
        "-machine", "none",
        "-nodefaults",
        "-display", "none",
        "-monitor", "stdio",
        "-fsdev", "local,id=probe,path=/,security_model=none",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [*user_prefix("nobody"), *qemu, *arguments],
            input="quit\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{qemu[0]} hangs when started without a machine"
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        return f"{qemu[0]} does not start: {said.splitlines()[-1]}"
    return None
