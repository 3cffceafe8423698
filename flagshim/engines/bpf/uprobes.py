"""Uprobes as trace events, named in tracefs, and taken away again whatever becomes of us.

A definition is a line in uprobe_events; while nobody uses it there is no breakpoint anywhere.
"""

import contextlib
import os
import re
import time
from typing import Self

from flagshim import descriptors
from flagshim.engines.bpf.program import tracefs
from flagshim.errors import FlagshimError
from flagshim.linux.process import set_name
from flagshim.linux.tracing import open_event, run_at_event

_GROUP = "flagshim_"
_TRIES = 101
_RETRY_SECONDS = 0.02


class Uprobes:
    """The probes of one session. A context manager.

    A child of ours holds the other end of a pipe: when we are gone, however, it takes the
    definitions away.
    """

    def __init__(self) -> None:
        """Clear away what others left that were killed together with their child."""
        self._folder = tracefs()
        self._group = f"{_GROUP}{os.getpid()}"
        self._fds: list[int] = []
        _remove(self._folder, [group for group in _groups(self._folder) if _is_stale(group)])
        self._lifeline, self._janitor = self._start_janitor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        os.close(self._lifeline)
        os.waitpid(self._janitor, 0)

    def add(self, name: str, file: str, offset: int, pid: int, program: int) -> None:
        """Run a BPF program where a process, or one that comes of it, gets to a place in a file.

        Args:
            name: of the probe, unique here.
            file: as this process sees it.
            offset: of the instruction in the file, in bytes.
            pid: the process.
            program: descriptor of the loaded program.

        Raises:
            OSError: the kernel refuses; FileNotFoundError where it knows no uprobes.
        """
        _write(self._folder, f"p:{self._group}/{name} {file}:{offset:#x}")
        with open(f"{self._folder}/events/{self._group}/{name}/id") as stream:
            event = int(stream.read())
        # A trace event has one list of programs, whoever opened it. The program goes with an
        # event of a process that does nothing: Linux 7.3 hands a program down to the events
        # that children inherit, and takes it off the list when the first of them ends.
        bearer = open_event(event, self._janitor, inherit=False)
        self._fds.append(bearer)
        run_at_event(bearer, program)
        self._fds.append(open_event(event, pid, inherit=True))

    def release(self) -> None:
        """Take the breakpoints away, and the definitions."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        _remove(self._folder, [self._group])

    def _start_janitor(self) -> tuple[int, int]:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()  # not for the terminal's ^C
                set_name("flagshim-janit")
                descriptors.blank(0, 1, 2)
                descriptors.close_all_but(read_end)
                os.read(read_end, 1)
                _remove(self._folder, [self._group])
            finally:
                os._exit(0)
        os.close(read_end)
        return write_end, pid


def _write(folder: str, line: str) -> None:
    fd = os.open(f"{folder}/uprobe_events", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, os.fsencode(line) + b"\n")
    finally:
        os.close(fd)


def _groups(folder: str) -> dict[str, list[str]]:
    """Return the names of our probes, by group: "p:flagshim_123/libc_open /lib/…:0x…"."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError), open(f"{folder}/uprobe_events") as file:
        for line in file:
            if match := re.match(rf"p:({_GROUP}\d+)/(\S+) ", line):
                found.setdefault(match[1], []).append(match[2])
    return found


def _is_stale(group: str) -> bool:
    return not os.path.exists(f"/proc/{group.removeprefix(_GROUP)}")


def _remove(folder: str, groups: list[str]) -> None:
    """Take definitions away; each is busy until its last event has been closed, by the kernel."""
    for _ in range(_TRIES):
        left = [
            f"{group}/{name}"
            for group, names in _groups(folder).items()
            if group in groups
            for name in names
        ]
        if not left:
            return
        for probe in left:
            with contextlib.suppress(OSError):
                _write(folder, f"-:{probe}")
                continue
            time.sleep(_RETRY_SECONDS)


def refused(error: OSError, where: str, pid: int, hint: str) -> FlagshimError:
    """Say why a probe could not be added."""
    if isinstance(error, ProcessLookupError):
        return FlagshimError(f"process {pid} ended meanwhile", "see ps -e")
    if isinstance(error, FileNotFoundError):
        return FlagshimError("this kernel has no uprobes (CONFIG_UPROBE_EVENTS)", hint)
    return FlagshimError(
        f"the kernel refuses a uprobe in {where}: {error.strerror}", "see flagshim doctor"
    )
