"""Passing on the signals that are sent to flagshim, whose PID people know, but meant for CMD."""

import signal
import time

FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)
"""Signals meant for CMD when somebody sends them to the PID they know, which is ours."""

_WAIT_SECONDS = 0.05
"""How long CMD's own copy of a signal may take to show itself."""
_SAME_SECONDS = 1.0


class Forwarding:
    """Finds out which signals CMD got as well, because they were sent to the group we share.

    kill(1) of a job and timeout(1) do that. As the tracer we see every delivery to CMD, and
    who sent it; a signal is passed on if none from the same sender shows up. (One that CMD
    blocks is pending then, and another makes no difference.)
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[float, signal.Signals, int]] = []
        """(when due, signal, sender) of what may have to be passed on."""
        self._seen: dict[int, tuple[int | None, float]] = {}

    def arrived(self, number: signal.Signals, sender: int) -> None:
        """Note a signal sent to us."""
        seen_sender, moment = self._seen.pop(number, (None, 0.0))
        now = time.monotonic()
        if seen_sender != sender or now - moment > _SAME_SECONDS:
            self.waiting.append((now + _WAIT_SECONDS, number, sender))

    def delivered(self, number: int, sender: int | None) -> None:
        """Note a signal that CMD is about to get."""
        for entry in self.waiting:
            if entry[1:] == (number, sender):
                self.waiting.remove(entry)
                return
        self._seen[number] = (sender, time.monotonic())

    def due(self) -> list[signal.Signals]:
        """Return, once, the signals that CMD did not get."""
        if not self.waiting:
            return []
        now = time.monotonic()
        found = [number for moment, number, _ in self.waiting if moment <= now]
        self.waiting = [entry for entry in self.waiting if entry[0] > now]
        return found
