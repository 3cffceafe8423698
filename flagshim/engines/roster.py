"""Who is traced, in memory that outlives the supervisor."""

import mmap
import struct

_IDS = 1 << 22
"""PID_MAX_LIMIT, include/linux/threads.h: what pid_max may be raised to while we run."""
_COMMAND = struct.Struct("=Ii")


class Roster:
    """The IDs of all tracees, shared with processes forked after it was made.

    A byte for each possible ID: to note one costs next to nothing, and the kernel gives
    memory only for the parts that are written to.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _IDS + _COMMAND.size)

    def add(self, tid: int) -> None:
        """Note a tracee."""
        self._memory[tid] = 1

    def remove(self, tid: int) -> None:
        """Forget a tracee."""
        self._memory[tid] = 0

    def __contains__(self, tid: int) -> bool:
        return self._memory[tid] == 1

    def tids(self) -> set[int]:
        """Return who was traced at last."""
        found = set()
        tid = self._memory.find(b"\1", 0, _IDS)
        while tid >= 0:
            found.add(tid)
            tid = self._memory.find(b"\1", tid + 1, _IDS)
        return found

    @property
    def command(self) -> int:
        """The PID of the command itself; 0 until it is started, and when it has ended."""
        return int(_COMMAND.unpack_from(self._memory, _IDS)[0])

    @property
    def status(self) -> int:
        """The wait status of the command once it has ended."""
        return int(_COMMAND.unpack_from(self._memory, _IDS)[1])

    def command_started(self, pid: int) -> None:
        """Note the command."""
        _COMMAND.pack_into(self._memory, _IDS, pid, 0)

    def command_ended(self, status: int) -> None:
        """Note the end of the command: from now on its ID may be anybody's."""
        _COMMAND.pack_into(self._memory, _IDS, 0, status)
