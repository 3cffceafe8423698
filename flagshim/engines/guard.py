"""A process that waits for the supervisor to die, to go on in its place.

ptrace(2) binds tracees to one process. If it dies they run on with our filter and without a
tracer, and what the rules are about fails with ENOSYS until somebody seizes them again.
"""

import os
import select
import signal
import time
from collections.abc import Callable

from flagshim import descriptors, tracee
from flagshim.engines.roster import Roster
from flagshim.engines.seizing import descendants, seize_process
from flagshim.engines.stops import WAITED
from flagshim.errors import Say
from flagshim.linux import SURVIVOR_OPTIONS, set_name, set_title
from flagshim.rules import Exemption
from flagshim.status import listeners

_SETTLED_SECONDS = 1.0
_ATTEMPTS = 101
"""How many supervisors in a row may die without having served for so long."""


class Guard:
    """The guard as its supervisor sees it."""

    def __init__(self, pid: int, pipe: int) -> None:
        self._pid = pid
        self._pipe = pipe

    def dismiss(self) -> None:
        """Tell it that the supervisor ends because its work is done."""
        try:
            os.write(self._pipe, b"x")
            os.waitpid(self._pid, 0)
        except (BrokenPipeError, ChildProcessError):
            pass  # somebody killed it


def start_guard(take_over: Callable[[int], None], say: Say, attempt: int = 0) -> Guard:
    """Fork a guard for this process.

    Args:
        take_over: called in the guard when we died, with the `attempt` for the next guard.
        say: how the guard tells what it does.
        attempt: how many supervisors died one right after the other.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        os.close(read_end)
        return Guard(pid, write_end)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)  # our end is the supervisor's
        set_name("flagshim")
        set_title(f"flagshim: guard of {supervisor}")
        descriptors.blank(0, 1)
        descriptors.close_all_but(read_end, *listeners())
        began = time.monotonic()
        if not _died(supervisor, read_end):
            os._exit(0)
        moment = time.monotonic()
        attempt = attempt + 1 if moment - began < _SETTLED_SECONDS else 0
        if attempt > _ATTEMPTS:
            say(f"supervisor {supervisor} died, as {attempt} before it; giving up")
            os._exit(1)
        take_over(attempt)
    except Exception as error:
        say(f"the guard of supervisor {supervisor} failed: {type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _died(supervisor: int, pipe: int) -> bool:
    """Wait for the supervisor's last word, or its end without one."""
    try:
        end = os.pidfd_open(supervisor)
    except ProcessLookupError:
        end = -1
    if os.getppid() != supervisor:  # it died before, and the ID may be anybody's
        end = -1
    if os.read(pipe, 1):
        return False
    if end >= 0:
        # Its descriptors are closed before its tracees are let go of (do_exit() in
        # kernel/exit.c); only when it can be waited for can they be seized.
        select.select([end], [], [])
    return True


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
