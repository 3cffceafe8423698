"""The structures of bpf/event.h, as user space reads and writes them."""

import struct
from typing import NamedTuple

COMM_SIZE = 16
PREFIX_SIZE = 256
ERRNOS = 256

_OPEN_EVENT = struct.Struct("=QQQqIIIiIIII16s")
OPEN_EVENT_SIZE = _OPEN_EVENT.size
"""Offset of the path, bytes; the path follows without the rest of its array."""

ENTERED_NO, ENTERED_YES = 1, 2
"""Whether the kernel began the call, where somebody looked."""

MISSES = ("ring full", "child", "path", "relative path", "rewrite", "return")
"""Names of enum miss, in order."""

SKIPPED = {
    "open_exit": "call",
    "openat_exit": "call",
    "openat2_exit": "call",
    "handle_exit": "call",
    "fcntl_exit": "call",
    "task_new": "fork",
}
"""What may have gone unseen when the kernel did not run a function of bpf/opens.c."""


class RawOpen(NamedTuple):
    """struct open_event: one open as it returned."""

    time_ns: int
    """CLOCK_MONOTONIC."""
    flags: int
    """As the kernel got them."""
    cleared: int
    result: int
    """A descriptor, 0, or minus an errno."""
    pid: int
    tid: int
    uid: int
    dirfd: int
    call: int
    """A value of `flagshim.syscalls.Kind`."""
    entered: int
    follows: bool
    """Told of only because it is what the thread did after it was refused with EPERM."""
    comm: bytes
    path: bytes | None


def unpack_open(data: bytes) -> RawOpen:
    """Decode one record of the ring buffer."""
    fields = _OPEN_EVENT.unpack_from(data)
    size, follows, comm = fields[-3:]
    path = data[OPEN_EVENT_SIZE : OPEN_EVENT_SIZE + size].split(b"\0", 1)[0] if size else None
    return RawOpen._make((*fields[:10], bool(follows), comm.split(b"\0", 1)[0], path))
