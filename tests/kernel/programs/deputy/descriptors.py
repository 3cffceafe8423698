"""Descriptors that there are already."""

import contextlib
import errno
import fcntl
import os
import resource
import socket
import sys

from acting import RW, N, R, be_nobody, call, folder, openat2


def setfl() -> None:
    """Through a descriptor one can do what one could, and no more."""
    fds = {
        "file": os.open(f"{folder}/file", os.O_RDONLY),
        "secret": os.open(f"{folder}/secret", os.O_RDWR | os.O_APPEND),
        "path": os.open(f"{folder}/file", os.O_PATH),
        "directory": os.open(folder, os.O_RDONLY),
        "socket": socket.socketpair()[0].detach(),
        "pipe": os.pipe()[0],
        "closed": 4711,
        "negative": -100,
    }
    be_nobody()
    for name, fd in fds.items():
        for more in (0, os.O_NONBLOCK, os.O_APPEND, os.O_ASYNC, os.O_DIRECT, os.O_CREAT):
            try:
                call(72, fd, fcntl.F_SETFL, N | more)  # whatever the descriptor
                result = "0"
            except OSError as error:
                result = errno.errorcode[error.errno or 0]
            print(name, oct(more), "=", result, flush=True)


def descriptors() -> None:
    """Opens of every kind and end, again and again, whenever a line is read."""
    be_nobody()
    here = os.open(folder, os.O_RDONLY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for _ in sys.stdin:
        for _ in range(101):
            for path in ("file", "secret", "absent", "fifo", "null", "link-to-fd", "jail", "socket",
                         "jail/absolute", "/proc/version", "writable", "file/x"):  # fmt: skip
                for flags in (R, RW | os.O_TRUNC, R | os.O_CREAT, R | os.O_DIRECTORY):
                    with contextlib.suppress(OSError):
                        os.close(os.open(path, flags | os.O_NONBLOCK, dir_fd=here))
            for bits in (0x08, 0x10, 0x20, 0x40):
                with contextlib.suppress(OSError):
                    os.close(openat2("file", R, bits, at=here))
            for fd in (here, 4711):
                with contextlib.suppress(OSError):
                    call(72, fd, fcntl.F_SETFL, N)
            resource.setrlimit(resource.RLIMIT_NOFILE, (here + 1, hard))
            with contextlib.suppress(OSError):
                os.close(os.open("file", R))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print("done", flush=True)
