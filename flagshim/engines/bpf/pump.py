"""From the kernel's ring buffer into a trace, and to whoever else wants to know."""

from collections import Counter
from collections.abc import Callable

from flagshim.engines.bpf.observer import Observer
from flagshim.engines.bpf.records import RawOpen
from flagshim.engines.bpf.translation import Translator
from flagshim.trace.events import OpenEvent
from flagshim.trace.writer import TraceWriter

Show = Callable[[RawOpen, OpenEvent], None]

_LOST = {
    "ring full": "flagshim did not keep up with the kernel, whose ring buffer was full",
    "return": "the kernel left out the return of a rewritten call (BPF was under way)",
    "rewrite": "too many rewritten calls at a time to wait for the result of each",
}
_BLIND = {
    "child": "child not watched (too many processes)",
    "path": "path not in memory when a rule asked for it",
    "call": "call that the kernel left out, of any process (BPF was under way)",
    "fork": "fork that the kernel left out, of any process (BPF was under way)",
    "relative path": "relative path, which a rule's folder cannot be compared with",
}


class Pump:
    """Empties the ring buffer, and keeps count of what did not get into it."""

    def __init__(
        self,
        observer: Observer,
        translator: Translator,
        writer: TraceWriter | None = None,
        show: Show | None = None,
    ) -> None:
        self.observer = observer
        self._translator = translator
        self._writer = writer
        self.show = show
        """Called with each open; None once nobody wants to know any more."""
        self.seen = 0
        self.out_of_reach = 0
        self.misses: Counter[str] = Counter()
        """What was not told, by the names of `records.MISSES` and `records.SKIPPED`."""

    @property
    def lost(self) -> int:
        """How many calls are known to have been seen by the kernel and by nobody else."""
        return sum(self.misses[name] for name in _LOST)

    def move(self) -> bool:
        """Take what there is, up to a batch; False if there was nothing.

        Raises:
            BrokenPipeError: nobody wants to see it any more; all of it has been taken.
        """
        taken = self.observer.take()
        unseen: BrokenPipeError | None = None
        for raw in taken:
            event = self._translator.event(raw)
            if not raw.follows:
                self.seen += 1
                if self._writer is not None:
                    self._writer.record(event)
            if self.show is not None:
                try:
                    self.show(raw, event)
                except BrokenPipeError as error:
                    self.show, unseen = None, error
        if self._writer is not None:
            if taken:
                self._writer.flush_if_due()
            else:  # idle: counts of what was lost, too, which no event may ever follow
                self._writer.flush()
        if unseen is not None:
            raise unseen
        return bool(taken)

    def count_misses(self) -> None:
        """Ask the kernel what it could not tell of."""
        new = self.observer.new_misses()
        self.misses += new
        if self._writer is None:
            return
        for name, why in _LOST.items():
            if new[name]:
                self._writer.lose(new[name], why)
        for name, kind in _BLIND.items():
            if new[name]:
                self._writer.blind_spot(kind, "?", new[name])

    def finish(self) -> None:
        """Take all that is left, once nothing more is looked at."""
        while self.move():
            pass
        self.count_misses()
