"""The machine's other work: waited for until it is over, or made where some is wanted.

What a stop costs depends on it more than on anything else. Where another CPU is idle the
scheduler puts supervisor and program on two of them, and waking an idle one is slow, on
virtual machines above all; where the others are busy the two share one and take turns.
"""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SPAN = 0.2
_NOISE = 0.15
"""CPUs that others may keep busy on what still counts as a quiet machine."""
_TICKS = 0.03
"""Seconds by which the kernel's two accounts may differ, however short the time."""
_SPIN_SECONDS = 900


@dataclass
class Quiet:
    """Takes figures when nobody else works, as long as its patience lasts."""

    patience: float
    """Seconds to wait for others in all, and to take again what they disturbed."""
    taken: int = 0
    disturbed: int = 0
    """How many of the figures were taken although others worked."""
    _spinning: int = 0

    def figure(self, measure: Callable[[], float]) -> float:
        """Measure once the machine is quiet, and again if it did not stay so."""
        while True:
            started = time.monotonic()
            while self.patience > time.monotonic() - started and not self._is_quiet():
                pass
            settled = time.monotonic()
            busy, own = _busy_seconds(), _own_seconds()
            figure = measure()
            spent = time.monotonic() - settled
            others = _busy_seconds() - busy - (_own_seconds() - own)
            disturbed = others > (self._spinning + _NOISE) * spent + _TICKS
            self.patience -= settled - started + (spent if disturbed else 0)
            if not disturbed or self.patience <= 0:
                self.taken += 1
                self.disturbed += disturbed
                return figure

    @contextmanager
    def crowd(self, spinner: Path) -> Iterator[None]:
        """Keep all CPUs but one busy."""
        self._spinning = cpus() - 1
        command = [str(spinner), str(_SPIN_SECONDS)]
        processes = [subprocess.Popen(command) for _ in range(self._spinning)]
        try:
            yield
        finally:
            self._spinning = 0
            for process in processes:
                process.kill()
                process.wait()

    def _is_quiet(self) -> bool:
        before = _busy_seconds()
        time.sleep(_SPAN)
        return _busy_seconds() - before <= (self._spinning + _NOISE) * _SPAN + _TICKS


def cpus() -> int:
    """Return how many CPUs we may use."""
    return len(os.sched_getaffinity(0))


def _busy_seconds() -> float:
    """Return the time all CPUs have worked so far (proc(5), stat; ticks of 1/100 s)."""
    with open("/proc/stat") as file:
        user, nice, system = map(int, file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Return the time that we and our ended children have worked."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
