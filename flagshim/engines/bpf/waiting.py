"""Moving events while there is something to wait for: a signal, the end of CMD, or of time."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from flagshim.engines.bpf.pump import Pump
from flagshim.engines.forwarding import FORWARDED
from flagshim.engines.stops import TERMINAL_STOPS, Stops

_POLL_SECONDS = 0.02
_TICK_SECONDS = 1.0
_LEAVE_ON = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})

Tick = Callable[[], None]


def _nothing() -> None:
    """Do nothing once a second."""


def wait_until_told(
    pump: Pump,
    stops: Stops,
    seconds: float | None,
    worth_it: Callable[[], bool],
    tick: Tick = _nothing,
) -> None:
    """Move events until a signal says to leave, time is up, or nobody is left to look at.

    Args:
        pump: what moves them.
        stops: where signals come from.
        seconds: how long; None for as long as it is worth it.
        worth_it: asked now and then.
        tick: called once a second.
    """
    now = time.monotonic()
    end = None if seconds is None else now + seconds
    next_tick = now + _TICK_SECONDS
    while end is None or time.monotonic() < end:
        info = stops.sleep(0 if pump.move() else _POLL_SECONDS)
        if info is not None and info.si_signo in _LEAVE_ON:
            break
        if info is not None and info.si_signo in TERMINAL_STOPS:
            os.kill(os.getpid(), signal.SIGSTOP)
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + _TICK_SECONDS
            pump.count_misses()
            tick()
            if not worth_it():
                break


def wait_for_child(pid: int, pump: Pump, stops: Stops) -> int:
    """Move events until CMD, our child, and all it started have ended; pass signals on to it.

    Returns:
        CMD's wait status.
    """
    ended, status = 0, 0
    while not ended or pump.observer.any_alive():
        info = stops.sleep(0 if pump.move() else _POLL_SECONDS)
        if info is not None and info.si_signo in TERMINAL_STOPS:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif info is not None and info.si_signo in FORWARDED and info.si_code <= 0:
            # What the terminal sends, CMD gets from there (sigaction(2)).
            for receiver in pump.observer.watched() if ended else [pid]:
                with contextlib.suppress(OSError):
                    os.kill(receiver, info.si_signo)
        if not ended:
            ended, status = os.waitpid(pid, os.WNOHANG)
    return status
