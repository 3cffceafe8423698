"""Other processes as proc(5) shows them.

They come and go while a test looks: flagshim has a child for its probe, and then one for the
trace. One that has gone is not named, is nothing and has no children.
"""

import contextlib
import os
from pathlib import Path


def everybody() -> list[int]:
    """PIDs of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def children(pid: int, thread: int | None = None) -> list[int]:
    """PIDs of what a thread of a process has started; its first thread, if none is named."""
    return [int(child) for child in _read(f"{pid}/task/{thread or pid}/children").split()]


def threads_of(pid: int) -> int:
    """How many threads a process has."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def arguments(pid: int) -> list[str]:
    """A process's command line; empty before its first execve has ended, too."""
    text = _read(f"{pid}/cmdline").decode(errors="surrogateescape")
    return text.rstrip("\0").split("\0") if text else []


def program(pid: int) -> str:
    """The path of a process's executable; empty if there is none, or none of our business."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return os.readlink(f"/proc/{pid}/exe")
    return ""


def name_of(pid: int) -> str:
    """What ps(1) calls a thread, at most 15 bytes; empty if there is none."""
    return _read(f"{pid}/comm").decode(errors="surrogateescape").removesuffix("\n")


def role_of(pid: int) -> str:
    """What ps(1) shows a process of flagshim's as, such as "keeper of 7, …"; else nothing."""
    title = " ".join(arguments(pid)[:1])
    return title.removeprefix("flagshim: ") if title.startswith("flagshim: ") else ""


def _read(file: str) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path("/proc", file).read_bytes()
    return b""
