"""Waiting: for tracees that stop or end, and for signals sent to the supervisor."""

import os
import signal
import time

from flagshim.engines.forwarding import FORWARDED
from flagshim.linux.ptrace import WAIT_TRACEES

TERMINAL_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})

WAITED = FORWARDED | TERMINAL_STOPS | {signal.SIGCHLD, signal.SIGCONT}
"""Signals that a supervisor takes when it looks for them, and not when they come."""

SPIN_SECONDS = 100e-6
"""How long to poll before sleeping. Waking an idle CPU takes most of the time of a stop."""

_BATCH = 127
"""Stops taken at once at most, so that the first of them is not kept waiting."""

_LOOK_SECONDS = 1e-3
"""How often a busy supervisor looks for signals."""


class Stops:
    """The supervisor's ears. Once it is made, the signals above are blocked, for good.

    Nothing a signal does may come between the end of CMD and ours: neither the trace nor
    CMD's exit status is to suffer from an impatient second ^C.

    They are taken with sigtimedwait(2), which tells who sent them, and SIGCHLD is among
    them: one wait for everything, no handlers, no races.
    """

    def __init__(self) -> None:
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # Else children would vanish before we hear of their end.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
        self._next_look = 0.0
        # On one CPU nobody else runs while we poll.
        self._spin = SPIN_SECONDS if len(os.sched_getaffinity(0)) > 1 else 0.0

    def ready(self, tracees: int) -> list[tuple[int, int]]:
        """Return the (tid, wait status) pairs at hand, after polling for a moment.

        All that are ready are taken before any is resumed: one wait for one resume
        starves all but the quickest.

        Args:
            tracees: how many there are, each of which stops once.

        Raises:
            ChildProcessError: no tracee is left.
        """
        waitpid = os.waitpid
        options = os.WNOHANG | WAIT_TRACEES
        tid, status = waitpid(-1, options)
        if not tid and self._spin:
            end = time.perf_counter() + self._spin
            while not tid and time.perf_counter() < end:
                os.sched_yield()  # the tracee may be waiting for this very CPU
                tid, status = waitpid(-1, options)
        found: list[tuple[int, int]] = []
        while tid:
            found.append((tid, status))
            if len(found) >= min(tracees, _BATCH):
                break
            try:
                tid, status = waitpid(-1, options)
            except ChildProcessError:
                break
        return found

    def sleep(self, seconds: float | None) -> signal.struct_siginfo | None:
        """Wait for a signal, SIGCHLD included; None after `seconds` without one."""
        if seconds is None:
            return signal.sigwaitinfo(WAITED)
        return signal.sigtimedwait(WAITED, seconds)

    def glance(self) -> signal.struct_siginfo | None:
        """Take a signal that is there, if the last look was a while ago."""
        now = time.perf_counter()
        if now < self._next_look:
            return None
        self._next_look = now + _LOOK_SECONDS
        return signal.sigtimedwait(WAITED, 0)
