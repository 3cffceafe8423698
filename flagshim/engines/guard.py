"""A process that waits for the supervisor to die, to go on in its place.

ptrace(2) binds tracees to one process. If it dies they run on with our filter and without a
tracer, and what the rules are about fails with ENOSYS until somebody seizes them again.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable

from flagshim import descriptors, tracee
from flagshim.engines.roster import Roster
from flagshim.engines.seizing import descendants, seize_process
from flagshim.engines.stops import WAITED
from flagshim.linux.process import set_name, set_title
from flagshim.linux.ptrace import SURVIVOR_OPTIONS
from flagshim.rules import Exemption
from flagshim.saying import Say
from flagshim.status import listeners

_SETTLED_SECONDS = 1.0
_ATTEMPTS = 101
"""How many supervisors in a row may die without having served for so long."""


class Guard:
    """The guard as its supervisor sees it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def dismiss(self) -> None:
        """End it: the work is done. It may even be stopped, and somebody may have killed it."""
        os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(self._pid, 0)


def start_guard(take_over: Callable[[int], None], say: Say, attempt: int = 0) -> Guard:
    """Fork a guard for this process.

    Args:
        take_over: called in the guard when we died, with the `attempt` for the next guard.
        say: how the guard tells what it does.
        attempt: how many supervisors died one right after the other.

    Raises:
        OSError: there cannot be another process.
    """
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return Guard(pid)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)  # our end is the supervisor's
        set_name("flagshim")
        set_title(f"flagshim: guard of {supervisor}")
        descriptors.blank(0, 1)
        descriptors.close_all_but(*listeners())
        began = time.monotonic()
        _wait_for_end(supervisor)
        attempt = attempt + 1 if time.monotonic() - began < _SETTLED_SECONDS else 0
        if attempt > _ATTEMPTS:
            say(f"supervisor {supervisor} died, as {attempt} before it; giving up")
            os._exit(1)
        take_over(attempt)
    except Exception as error:
        say(f"the guard of supervisor {supervisor} failed: {type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _wait_for_end(supervisor: int) -> None:
    """Wait until our parent can be waited for: by then its tracees have been let go of.

    pidfd_open(2), and exit_notify() in kernel/exit.c.
    """
    try:
        end = os.pidfd_open(supervisor)
    except ProcessLookupError:
        return
    if os.getppid() == supervisor:  # else it died before, and the ID may be anybody's
        select.select([end], [], [])
    os.close(end)


def seize_again(roster: Roster, exemption: Exemption) -> set[int]:
    """Seize all tracees of a supervisor that died, and what they have started since.

    The roster names them all along: we may die in the middle of it, too.

    Args:
        roster: of the former supervisor.
        exemption: programs that were not traced.

    Raises:
        OSError: there are some, and none can be traced.
    """

    def ours(tid: int) -> bool:
        # An ID might be somebody else's by now; who has no filter is not one of ours.
        return tracee.has_seccomp_filter(tid) and not exemption.covers(tracee.names(tid))

    def take(tid: int) -> None:
        seized.add(tid)
        roster.add(tid)

    former = roster.tids()
    seized: set[int] = set()
    tried: set[int] = set()
    refusal: OSError | None = None
    waiting = former
    while waiting:
        for tid in waiting - seized:
            if ours(tid):
                try:
                    seize_process(tid, SURVIVOR_OPTIONS, take)
                except OSError as error:
                    refusal = error
        tried |= waiting
        waiting = descendants({tracee.thread_group(tid) for tid in seized}, ours) - seized - tried
    if refusal is not None and not seized:
        raise refusal
    for tid in former - seized:
        roster.remove(tid)
    return seized
