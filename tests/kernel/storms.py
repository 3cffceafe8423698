"""A program that makes opens as fast as it can, under a supervisor that a test may kill."""

import bisect
import mmap
import os
import signal
import struct
import subprocess
from pathlib import Path

from tests.kernel.conftest import SECONDS, Place, Runner
from tests.kernel.ways import wait_until
from tests.support import REPOSITORY, rows

PROCESSES, THREADS = 8, 4


class Storm:
    """A storm under way."""

    def __init__(
        self, run: Runner, program: str, place: Place, mode: str, *options: str, opens: int
    ) -> None:
        self.log = place.path / "log"
        self.log.write_bytes(bytes(8 * opens))
        self.log.chmod(0o666)
        self.opens = opens
        argv = [program, str(PROCESSES), str(THREADS), str(opens), str(place.file), str(self.log)]
        command = run.command(argv, *options)
        command[command.index("run")] = mode
        self.trace = run.trace
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True
        )
        self.program = program
        wait_until(self.threads)

    def threads(self) -> set[int]:
        """IDs of the processes that run the program."""
        found = set()
        for name in os.listdir("/proc"):
            if name.isdecimal():
                try:
                    if os.readlink(f"/proc/{name}/exe") == self.program:
                        found.add(int(name))
                except OSError:
                    continue
        return found

    def supervisors(self) -> list[int]:
        """IDs of the notify engine's supervisors of this program."""
        return [pid for thread in self.threads() for pid in supervisors_of(thread)]

    def guards(self) -> list[int]:
        """IDs of its guards that are no `flagshim run`."""
        return [pid for thread in self.threads() for pid in guards_of(thread)]

    def times(self) -> list[int]:
        """When the opens that are done returned; minus that where they failed."""
        return [ns for (ns,) in struct.iter_unpack("=q", self.log.read_bytes()) if ns]

    def done(self) -> int:
        """How many opens are done. Quickly: each thread fills its part of the log in order."""
        workers = PROCESSES * THREADS
        found = start = 0
        with self.log.open("rb") as log, mmap.mmap(log.fileno(), 0, prot=mmap.PROT_READ) as memory:
            times = memoryview(memory).cast("q")
            for worker in range(workers):
                size = self.opens // workers + (worker < self.opens % workers)
                part = times[start : start + size]
                found += bisect.bisect_left(range(size), 1, key=lambda n, part=part: part[n] == 0)
                start += size
                part.release()
            times.release()
        return found

    def events(self) -> int:
        """How many events the trace has."""
        return rows(self.trace, "SELECT count(*) FROM event")[0][0]

    def end(self) -> None:
        """End what is left of it."""
        for pid in self.threads():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=SECONDS)


def supervisors_of(pid: int) -> list[int]:
    """IDs of the notify engine's supervisors of a command."""
    return _titled("supervisor", pid)


def guards_of(pid: int) -> list[int]:
    """IDs of the guards of a command, but for `flagshim run`."""
    return _titled("guard", pid)


def role_of(pid: int) -> str:
    """What ps(1) shows a process of flagshim's as, such as "keeper of 7, …"; else nothing."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
    return text.removeprefix("flagshim: ") if text.startswith("flagshim: ") else ""


def _titled(role: str, pid: int) -> list[int]:
    names = [name for name in os.listdir("/proc") if name.isdecimal()]
    return [int(name) for name in names if role_of(int(name)).startswith(f"{role} of {pid} ")]
