"""Sessions that only look: the opens of some processes, or of all, as the kernel tells of them."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flagshim import descriptors
from flagshim.engines.attach import find_target
from flagshim.engines.bpf.observer import Observer, Selection
from flagshim.engines.bpf.pump import Pump, Show
from flagshim.engines.bpf.translation import Translator
from flagshim.engines.bpf.waiting import Tick, wait_for_child, wait_until_told
from flagshim.engines.command import User, command_for
from flagshim.engines.launch import fork_waiting
from flagshim.engines.policy import Policy
from flagshim.engines.stops import Stops
from flagshim.errors import FlagshimError
from flagshim.posts import Supervision
from flagshim.saying import say_in_passing
from flagshim.session import begin, check_command, uid_of
from flagshim.trace.writer import TraceWriter

ENGINE = "bpf watch"


@dataclass(frozen=True)
class Watched:
    """What came of looking."""

    returned: Counter[int]
    """Calls by errno (0: success), of those that were looked at, told of or not."""
    told: int
    """Events."""
    lost: int
    """Events that the kernel had and could not hand over."""
    not_stored: int
    """Events that are not in the trace, the lost ones included; 0 without a trace."""
    trouble: str
    seconds: float
    """How long."""
    misses: Counter[str]
    """By the names of `records.MISSES` and `records.SKIPPED`."""
    exit_status: int | None = None
    """Of CMD; minus the signal that ended it."""


class Watch:
    """One look, from beginning to end."""

    def __init__(self, selection: Selection, trace: Path | None, entries: bool = False) -> None:
        """Remember what to look at.

        Args:
            selection: which opens; of its processes each is looked up first.
            trace: file to add a session to; None for none.
            entries: whether to find out which calls the kernel did not even begin.

        Raises:
            FlagshimError: a process is not there, or a kernel thread.
        """
        for pid in selection.pids:
            find_target(pid, may_be_traced=True)
        self._selection = selection
        self._trace = trace
        self._entries = entries
        self._began = 0.0
        self._pump: Pump | None = None

    def returned(self) -> Counter[int]:
        """Return the calls so far by errno (0: success)."""
        return self._pump.observer.returned() if self._pump else Counter()

    def lost(self) -> int:
        """Return how many events were lost so far."""
        return self._pump.lost if self._pump else 0

    def processes(
        self, seconds: float | None, show: Show, tick: Tick, ready: Callable[[], None]
    ) -> Watched:
        """Look at running processes until a signal comes, time is up, or they have ended.

        Args:
            seconds: how long; None for as long as it is worth it.
            show: called with each open.
            tick: called once a second.
            ready: called once, when opens are looked at.

        Raises:
            FlagshimError: it cannot be done here, or the trace is unusable.
        """
        selection = self._selection
        with Observer(selection, self._entries) as observer:
            stops = Stops()
            writer = self._writer(sys.argv, os.getuid())
            pump = self._pump = Pump(observer, Translator(), writer, show)
            self._start(observer, writer)
            ready()
            named = bool(selection.pids) and not (selection.all or selection.cgroup)
            worth_it = observer.any_alive if named else lambda: True
            try:
                wait_until_told(pump, stops, seconds, worth_it, tick)
            except BrokenPipeError:  # its reader has seen enough; the trace is to be whole
                pump.show = None
            return self._end(observer, pump, writer, None)

    def command(self, argv: Sequence[str], user: User | None, show: Show) -> Watched:
        """Run a command, and look at it until it and all it started have ended.

        Raises:
            FlagshimError: it cannot be done here, or CMD is unusable; it has not run then.
        """
        check_command(argv[0])
        command = command_for(argv, None, user)
        handed_on = descriptors.inherited()
        child = fork_waiting(command)  # before the mount namespace that tracefs may need
        try:
            observer = Observer(self._selection, self._entries)
        except FlagshimError:
            child.give_up()
            raise
        with observer:
            stops = Stops()
            writer = None
            try:
                writer = self._writer(argv, uid_of(user))
                pump = self._pump = Pump(observer, Translator(), writer, show)
                observer.watch(child.pid)
                self._start(observer, writer)
            except FlagshimError:
                child.give_up()
                raise
            child.release()
            descriptors.close(handed_on)
            status = os.waitstatus_to_exitcode(wait_for_child(child.pid, pump, stops))
            reason = child.not_started()
            if reason is not None:
                if writer is not None:
                    writer.close(None, began=False)
                raise command.failure(reason)
            return self._end(observer, pump, writer, status)

    def _writer(self, argv: Sequence[str], uid: int) -> TraceWriter | None:
        if self._trace is None:
            return None
        session = begin(argv, Supervision(Policy(()), self._trace), ENGINE, uid)
        return TraceWriter(session, say_in_passing)

    def _start(self, observer: Observer, writer: TraceWriter | None) -> None:
        try:
            observer.start(writer.keeper_pid if writer else 0)
        except FlagshimError:
            if writer is not None:
                writer.close(None, began=False)
            raise
        self._began = time.monotonic()

    def _end(
        self, observer: Observer, pump: Pump, writer: TraceWriter | None, exit_status: int | None
    ) -> Watched:
        observer.stop()
        pump.finish()
        if writer is not None:
            writer.close(exit_status)
        return Watched(
            observer.returned(),
            pump.seen,
            pump.lost,
            writer.lost if writer else 0,
            writer.trouble if writer else "",
            time.monotonic() - self._began,
            pump.misses,
            exit_status,
        )
