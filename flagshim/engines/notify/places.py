"""Who receives calls, and who serves which lane: one at a time, whoever is killed when.

A place is a byte of a file, and who has it, a record lock on it (fcntl(2), F_SETLK). The kernel
takes such a lock back when its process ends, hands none on to a child, and tells who has it.
"""

import errno
import fcntl
import os
import struct

RECEIVER = 0
"""The place of who receives calls, one of all supervisors."""
_FIRST_LANE = 1
_flock = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, len, pid


def place_at(lane: int) -> int:
    """Return the place of who serves a lane."""
    return _FIRST_LANE + lane


class Places:
    """All places. A process that closes any descriptor of the file gives up what it has."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("flagshim")

    def take(self, place: int) -> None:
        """Wait until a place is ours."""
        fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, place)

    def try_to_take(self, place: int) -> bool:
        """Take a place unless another has it."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def leave(self, place: int) -> None:
        """Let another have a place."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, place)

    def holder(self, place: int) -> int:
        """Return the PID of the other process that has a place; 0 for none."""
        lock = _flock.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        kind, _, _, _, pid = _flock.unpack(fcntl.fcntl(self.fd, fcntl.F_GETLK, lock))
        return 0 if kind == fcntl.F_UNLCK else int(pid)
