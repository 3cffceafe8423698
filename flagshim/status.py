"""What flagshim says of itself to a program: JSON lines on a descriptor of its own.

For whoever starts `flagshim run` and has to tell its words from CMD's, and its own failure
(125) from a CMD that exits with 125; docs/library.md describes the lines.
"""

import contextlib
import fcntl
import json
import os

_listener: int | None = None


def report_to(fd: int) -> None:
    """From now on, write to `fd`; CMD does not get it.

    Raises:
        OSError: it is not open, or not for writing.
    """
    global _listener  # noqa: PLW0603  (there is one process, and one who started it)
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(0, "open for reading only")
    os.set_inheritable(fd, False)
    _listener = fd


def listeners() -> tuple[int, ...]:
    """Return what a process of ours that may have something to say must not close."""
    return () if _listener is None else (_listener,)


def tell(kind: str, **members: object) -> bool:
    """Write one line, a JSON object {"status": kind, …}; False if it is for stderr instead."""
    if _listener is None:
        return False
    with contextlib.suppress(OSError):  # nobody reads it any more
        line = json.dumps({"status": kind, **members}) + "\n"
        os.write(_listener, line.encode())
    return True
