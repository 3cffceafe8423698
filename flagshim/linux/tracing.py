"""Trace events of the kernel (tracefs, perf_event_open(2)), and BPF programs at them."""

import ctypes
import fcntl
import os
import struct

from flagshim.linux.libc import failure, function, raw_syscall

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_unshare = function("unshare", ctypes.c_int, restype=ctypes.c_int)
_mount = function(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p,
    restype=ctypes.c_int,
)  # fmt: skip


def mount_tracefs_privately(target: str) -> None:
    """Mount tracefs in a mount namespace of our own, which children made later share.

    What others mount still reaches us (mount_namespaces(7), MS_SLAVE), ours reaches nobody.
    """
    if _unshare(_CLONE_NEWNS) != 0 or _mount(None, b"/", None, _MS_REC | _MS_SLAVE, None) != 0:
        raise failure()
    if _mount(b"tracefs", target.encode(), b"tracefs", 0, None) != 0:
        raise failure(target)


_NR_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_SET_BPF = 0x40042408
_PERF_TYPE_TRACEPOINT = 2
_PERF_ATTR_INHERIT = 2
# struct perf_event_attr up to PERF_ATTR_SIZE_VER5, linux/perf_event.h: type, size, config, three
# of no interest here, flags.
_perf_event_attr = struct.Struct("=IIQQQQQ64x")


def open_event(event: int, pid: int, inherit: bool) -> int:
    """Have a trace event happen in a process: perf_event_open(2).

    At a uprobe that puts the breakpoint into the memory of the process, and of nobody else.
    (Not by the uprobe PMU: for each child that reads the name of the file anew, from the memory
    of the process that forks, and fails the fork.)

    Args:
        event: its ID in tracefs.
        pid: the process.
        inherit: whether it is also for processes that come of it.

    Returns:
        A descriptor; closing it undoes it.
    """
    attr = _perf_event_attr.pack(
        _PERF_TYPE_TRACEPOINT, _perf_event_attr.size, event, 0, 0, 0, _PERF_ATTR_INHERIT * inherit
    )
    number = _NR_PERF_EVENT_OPEN[os.uname().machine]
    return raw_syscall(number, attr, pid, -1, -1, _PERF_FLAG_FD_CLOEXEC)


def run_at_event(fd: int, program: int) -> None:
    """Run a loaded BPF program wherever the trace event of `fd` happens, until that is closed."""
    fcntl.ioctl(fd, _PERF_EVENT_IOC_SET_BPF, program)
