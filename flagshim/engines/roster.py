"""Who is traced, in memory that outlives the supervisor."""

import mmap
import struct

_COMMAND = struct.Struct("=Ii")


class Roster:
    """The IDs of all tracees, shared with processes forked after it was made.

    A byte for each possible ID: to note one costs next to nothing, and the kernel gives
    memory only for the parts that are written to.
    """

    def __init__(self) -> None:
        with open("/proc/sys/kernel/pid_max") as file:
            self._ids = int(file.read())
        self._memory = mmap.mmap(-1, self._ids + _COMMAND.size)

    def add(self, tid: int) -> None:
        """Note a tracee."""
        self._memory[tid] = 1

    def remove(self, tid: int) -> None:
        """Forget a tracee."""
        self._memory[tid] = 0

    def tids(self) -> set[int]:
        """Return who was traced at last."""
        found = set()
        tid = self._memory.find(b"\1", 0, self._ids)
        while tid >= 0:
            found.add(tid)
            tid = self._memory.find(b"\1", tid + 1, self._ids)
        return found

    @property
    def command(self) -> int:
        """The PID of the command itself; 0 until it is started, and when it has ended."""
        return int(_COMMAND.unpack_from(self._memory, self._ids)[0])

    @property
    def status(self) -> int:
        """The wait status of the command once it has ended."""
        return int(_COMMAND.unpack_from(self._memory, self._ids)[1])

    def command_started(self, pid: int) -> None:
        """Note the command."""
        _COMMAND.pack_into(self._memory, self._ids, pid, 0)

    def command_ended(self, status: int) -> None:
        """Note the end of the command: from now on its ID may be anybody's."""
        _COMMAND.pack_into(self._memory, self._ids, 0, status)
