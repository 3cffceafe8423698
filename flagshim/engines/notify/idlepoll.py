"""Keeping an idle CPU awake while calls come in quick succession.

To hand a descriptor over the kernel wakes the thread, on an idle CPU if there is one. Waking a
CPU that has halted takes longest of all that becomes of a call, in a virtual machine most of
all: so much that kernels have cpuidle-haltpoll (Documentation/virt/guest-halt-polling.rst in
Linux), which polls for a moment before a CPU halts. This is the same from outside: a process of
the policy SCHED_IDLE (sched(7)), which leaves its CPU to whoever wants it, polls until calls
come no more.
"""

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import NoReturn

from flagshim import descriptors
from flagshim.engines.notify.lanes import Lanes
from flagshim.linux.process import die_with_parent, set_name, set_title

POLL_SECONDS = 250e-6
"""Calls that follow each other within that are worth it; and how long to poll after the last."""
_CGROUPS = Path("/sys/fs/cgroup")


class Pace:
    """A supervisor's sense of how quickly calls come."""

    def __init__(self, lanes: Lanes, alarm: int) -> None:
        """Watch the pace.

        Args:
            lanes: by which the poller is told.
            alarm: an eventfd that wakes it.
        """
        self._lanes = lanes
        self._alarm = alarm
        self._before = 0.0

    def step(self) -> None:
        """Take note of a call."""
        now = time.perf_counter()
        if now - self._before < POLL_SECONDS and self._lanes.count_quick_call():
            os.eventfd_write(self._alarm, 1)
        self._before = now


class IdlePoller:
    """The process that polls, as its parent sees it.

    It is started when the alarm is rung for the first time, and again if somebody kills it. It
    ends with its parent.
    """

    def __init__(self, lanes: Lanes, alarm: int, command: str) -> None:
        """Prepare one.

        Args:
            lanes: by which supervisors tell of quick calls.
            alarm: an eventfd that wakes it.
            command: what is supervised, for ps(1).
        """
        self._lanes = lanes
        self._alarm = alarm
        self._title = f"flagshim: idle poller of {command}"
        self._pid = 0
        lanes.poller_rests = self.is_worth_it()  # else nobody needs to ring
        self.is_wanted = lanes.poller_rests
        """Whether its parent is to wait for the alarm, and to start it then."""

    @staticmethod
    def is_worth_it() -> bool:
        """Tell whether there is another CPU, and no quota that polling would use up."""
        return len(os.sched_getaffinity(0)) > 1 and not has_quota(_CGROUPS)

    def start(self) -> None:
        """Start it; never again, if there cannot be another process."""
        self.is_wanted = False
        parent = os.getpid()
        try:
            self._pid = os.fork()
        except OSError:
            self._lanes.poller_rests = False
            return
        if self._pid == 0:
            self._be_poller(parent)

    def look_after(self) -> None:
        """Take note if it has ended."""
        if not self._pid:
            return
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._pid = 0
            self._lanes.poller_rests = self.is_wanted = os.WIFSIGNALED(status)

    def end(self) -> None:
        """Have done with it; not wait for it, who may get no CPU for long, not even to die."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, os.WNOHANG)
            self._pid = 0

    def _be_poller(self, parent: int) -> NoReturn:
        status = 1
        try:
            die_with_parent()
            if os.getppid() == parent:
                set_name("flagshim")
                set_title(self._title)
                descriptors.blank(0, 1, 2)
                descriptors.close_all_but(self._alarm)
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                self._poll()
        finally:
            os._exit(status)

    def _poll(self) -> NoReturn:
        while True:
            self._lanes.poller_rests = True
            select.select([self._alarm], [], [])
            with contextlib.suppress(BlockingIOError):  # a former one has
                os.eventfd_read(self._alarm)
            self._lanes.poller_rests = False
            self._keep_awake()

    def _keep_awake(self) -> None:
        calls, now, until = -1, 0.0, 0.0
        while now < until or calls != self._lanes.quick_calls:
            if calls != self._lanes.quick_calls:
                calls, until = self._lanes.quick_calls, time.perf_counter() + POLL_SECONDS
            os.sched_yield()
            now = time.perf_counter()


def has_quota(cgroups: Path, mine: Path = Path("/proc/self/cgroup")) -> bool:
    """Tell whether this process may use only so much CPU time: cgroups(7), cpu.max.

    Args:
        cgroups: where version 2 is mounted. A container sees its own quota there, and not
            those of what it is in.
        mine: tells the group we are in.
    """
    try:
        lines = os.fsdecode(mine.read_bytes()).splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return False
    group = cgroups / path.strip("/")
    for each in (group, *group.parents):
        with contextlib.suppress(OSError):
            if not (each / "cpu.max").read_bytes().startswith(b"max"):
                return True
        if each == cgroups:
            break
    return False
