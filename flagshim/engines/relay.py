"""What `flagshim run`, whose PID people know, does with the signals that are meant for CMD."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable

from flagshim.engines.forwarding import Forwarding
from flagshim.engines.stops import TERMINAL_STOPS

_STOP_SECONDS = 1.0
"""How long after ^Z we wait for CMD to stop before we take it that it will not."""


class Relay:
    """Passes signals on, and stops this process when CMD has stopped after ^Z."""

    def __init__(
        self, recipients: Callable[[], Iterable[int]], has_stopped: Callable[[], bool]
    ) -> None:
        """Relay signals.

        Args:
            recipients: gives the processes that a signal is for.
            has_stopped: tells whether CMD is stopped, every thread of it.
        """
        self._recipients = recipients
        self._has_stopped = has_stopped
        self._stop_until = 0.0
        self._forwarding = Forwarding()

    def signalled(self, info: signal.struct_siginfo) -> None:
        """Take a signal that was sent to us."""
        number = signal.Signals(info.si_signo)
        if number in TERMINAL_STOPS:
            self._stop_until = time.monotonic() + _STOP_SECONDS
        elif number == signal.SIGCONT:
            self._stop_until = 0.0
        elif info.si_code <= 0:  # what the terminal sends, CMD gets from there (sigaction(2))
            self._forwarding.arrived(number, info.si_pid)

    def delivered(self, number: int, sender: int | None) -> None:
        """Note a signal that CMD is about to get by itself."""
        self._forwarding.delivered(number, sender)

    def attend(self) -> bool:
        """Pass on signals that are due, and stop if CMD has; True asks to be called again soon.

        Not before CMD has stopped: a program that handles SIGTSTP needs us until it stops
        of itself, so that the shell sees its job stopped.
        """
        for number in self._forwarding.due():
            for pid in self._recipients():
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        if self._stop_until:
            if self._has_stopped():
                self.stop()
            elif time.monotonic() > self._stop_until:  # CMD chose not to stop
                self._stop_until = 0.0
        return bool(self._forwarding.waiting) or self._stop_until > 0

    def stop(self) -> None:
        """Stop, until somebody continues us."""
        self._stop_until = 0.0
        os.kill(os.getpid(), signal.SIGSTOP)
