"""Memory of whoever supervises, while it has opens to answer and after the last of them."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flagshim.errors import FlagshimError
from tests.bench.contestants import Bench, Contestant
from tests.bench.opens import TIMEOUT

_INTERVAL = 0.02
_AFTERWARDS = 0.5
"""Seconds to go on looking after the last open, while the trace is still being written."""

_FIRST = {
    Contestant.FLAGSHIM: "supervisor",
    Contestant.NOTIFY: "guard",
    Contestant.STRACE_BPF: "strace",
}
"""What the process is that was started."""
_TITLES = {
    "keeper of": ("trace keeper",),
    "supervisor of": ("supervisor", "supervisor in reserve"),
    "idle poller of": ("idle poller",),
}
"""What its children are that have a title of flagshim's, in the order they are started."""
_ALWAYS = {
    Contestant.FLAGSHIM: {"supervisor", "trace keeper"},
    Contestant.NOTIFY: {"guard", "trace keeper", "supervisor", "supervisor in reserve"},
    Contestant.STRACE_BPF: {"strace"},
}
"""What each consists of on every machine, once it is at work."""


@dataclass
class Footprint:
    """Peaks of the processes of one supervisor, in bytes."""

    hwm: dict[str, int] = field(default_factory=dict)
    """VmHWM: the largest resident set of each (proc(5), status)."""
    rss: dict[str, int] = field(default_factory=dict)
    """The largest resident set seen of each."""
    pss: int = 0
    """Of all together: of a page that n processes have, each is given one nth."""
    looks: int = 0

    def look(self, processes: dict[str, int]) -> None:
        """Take one sample.

        Args:
            processes: PIDs by name.
        """
        sizes = [_kilobytes(pid, "smaps_rollup") for pid in processes.values()]
        for (name, pid), size in zip(processes.items(), sizes, strict=True):
            self.rss[name] = max(self.rss.get(name, 0), size["Rss"] << 10)
            self.hwm[name] = _kilobytes(pid, "status")["VmHWM"] << 10
        self.pss = max(self.pss, sum(size["Pss"] for size in sizes) << 10)
        self.looks += 1


def measure(bench: Bench, how: Contestant, count: int) -> Footprint:
    """Look at a supervisor while its program makes `count` refused opens, and afterwards.

    Raises:
        FlagshimError: it failed, or never was what it is known to consist of.
    """
    bench.clear()
    footprint = Footprint()
    result = bench.folder / "result"
    with open(result, "wb") as out:
        words = [str(bench.opener), "noatime", str(count), str(bench.refused)]
        process = subprocess.Popen(
            bench.command(how, words, bench.user),
            stdin=subprocess.PIPE,  # the opener waits for the end of it
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
        try:
            _watch(footprint, how, process, TIMEOUT, lambda: result.stat().st_size > 0)
            _watch(footprint, how, process, _AFTERWARDS, lambda: False)
            process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
            process.communicate()
    if process.returncode or not result.stat().st_size or not footprint.looks:
        raise FlagshimError(
            f"{how}: exit status {process.returncode}, {footprint.looks} looks at its memory",
            "try it by hand",
        )
    return footprint


def _watch(
    footprint: Footprint,
    how: Contestant,
    process: "subprocess.Popen[bytes]",
    seconds: float,
    done: Callable[[], bool],
) -> None:
    """Look again and again, until it is done, gone, or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not done():
        try:
            found = {_FIRST[how]: process.pid, **_titled(process.pid)}
            if found.keys() >= _ALWAYS[how]:
                footprint.look(found)
        except OSError:  # ended meanwhile
            continue
        time.sleep(_INTERVAL)


def _titled(parent: int) -> dict[str, int]:
    """Return the children of a process that have a title of flagshim's: PIDs by name."""
    names = {title: list(names) for title, names in _TITLES.items()}
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        text = Path(f"/proc/{child}/cmdline").read_text(errors="replace")
        for title, left in names.items():
            if left and text.startswith(f"flagshim: {title} "):
                found[left.pop(0)] = int(child)
    return found


def _kilobytes(pid: int, file: str) -> dict[str, int]:
    """Read the "Name:  N kB" lines of a file of /proc/PID."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    words = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(number) for name, number, _ in words}
