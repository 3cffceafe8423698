"""A program that makes opens as fast as it can, under a supervisor that a test may kill."""

import bisect
import contextlib
import mmap
import os
import signal
import struct
import subprocess
from pathlib import Path

from flagshim import tracee
from tests.kernel.conftest import NOBODY, SECONDS, Place, Runner
from tests.processes import everybody, program, role_of
from tests.support import REPOSITORY, rows, wait_until

PROCESSES, THREADS = 8, 4


class Storm:
    """A storm under way."""

    def __init__(
        self, run: Runner, program: str, place: Place, mode: str, *options: str, opens: int,
        held: int = 1, processes: int | None = None,
    ) -> None:  # fmt: skip
        """Begin it.

        Args:
            run: how to run programs.
            program: endure.
            place: with the file to be opened.
            mode: run or exec.
            options: of flagshim.
            opens: how many.
            held: how many of them, the last ones, each thread leaves until `hold` or `release`.
            processes: have flagshim be an ordinary user's as well, who may have that many.
        """
        self.log = place.path / "log"
        new_log(self.log, opens, held)
        self.opens = opens
        argv = [program, str(PROCESSES), str(THREADS), str(opens), str(place.file), str(self.log)]
        command = run.command(argv, *options, user="nobody" if processes is None else None)
        command[command.index("run")] = mode
        if processes is not None:
            ids = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            command = ["prlimit", f"--nproc={processes}", *ids, *command]
        self.trace = run.trace
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stderr=subprocess.PIPE, start_new_session=True
        )
        self.program = program
        wait_until(self.threads)

    def threads(self) -> set[int]:
        """IDs of the processes that run the program."""
        return {pid for pid in everybody() if program(pid) == self.program}

    def supervisors(self) -> list[int]:
        """IDs of the notify engine's supervisors of this program."""
        return [pid for thread in self.threads() for pid in supervisors_of(thread)]

    def guards(self) -> list[int]:
        """IDs of its guards that are no `flagshim run`."""
        return [pid for thread in self.threads() for pid in guards_of(thread)]

    def hold(self, last: int) -> None:
        """Have each thread leave so many of its opens, the last ones."""
        hold(self.log, last)

    def release(self) -> None:
        """Let it end."""
        hold(self.log, 0)

    def times(self) -> list[int]:
        """When the opens that are done returned; minus that where they failed."""
        return times_in(self.log)

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

    def fill_stderr(self) -> None:
        """Have whoever writes to its stderr wait, until somebody reads that."""
        fd = os.open(f"/proc/{self.process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, bytes(4096))
        os.close(fd)

    def end(self) -> None:
        """End what is left of it."""
        for pid in self.threads():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=SECONDS)


def new_log(log: Path, opens: int, held: int = 0) -> None:
    """Make a log for that many opens by endure.

    Args:
        log: where.
        opens: how many.
        held: how many of them, the last ones, each thread leaves until `hold` says otherwise.
    """
    log.write_bytes(bytes(8 * opens) + held.to_bytes(8, "little"))
    log.chmod(0o666)


def hold(log: Path, last: int) -> None:
    """Have each thread that writes to a log leave so many of its opens, the last ones."""
    with log.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(last.to_bytes(8, "little"))


def times_in(log: Path) -> list[int]:
    """When the opens returned that endure has logged; minus that where they failed."""
    return [ns for (ns,) in struct.iter_unpack("=q", log.read_bytes()[:-8]) if ns]


def supervisors_of(pid: int) -> list[int]:
    """IDs of the notify engine's supervisors of a command."""
    return _titled("supervisor", pid)


def guards_of(pid: int) -> list[int]:
    """IDs of the guards of a command, but for `flagshim run`."""
    found = _titled("guard", pid)
    return [guard for guard in found if tracee.parent_of(guard) not in found]  # nor one just forked


def _titled(role: str, pid: int) -> list[int]:
    return [someone for someone in everybody() if role_of(someone).startswith(f"{role} of {pid} ")]
