"""The post of a supervisor: engine, trace, and a guard who takes the post over if it dies."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from flagshim import tracee
from flagshim.engines.guard import Guard, seize_again, start_guard
from flagshim.engines.policy import Fate, Policy
from flagshim.engines.ptrace import PtraceEngine
from flagshim.engines.roster import Roster
from flagshim.engines.stops import Stops
from flagshim.errors import LIMITS, FlagshimError, hint_for
from flagshim.linux.process import set_title
from flagshim.saying import Say
from flagshim.trace.bounds import EVERYTHING, Bound
from flagshim.trace.events import text_or_bytes
from flagshim.trace.store import Session, take_back
from flagshim.trace.writer import TraceWriter


@dataclass(frozen=True)
class Supervision:
    """What is to be done with a program's opens, and where it is written down."""

    policy: Policy
    trace: Path
    """File to add a session to, made if missing."""
    keep: Bound = EVERYTHING
    """How much of the trace is kept."""


class Post:
    """A supervisor at work; `take_post` makes the first."""

    def __init__(
        self,
        how: Supervision,
        session: Session,
        say: Say,
        roster: Roster,
        guard: Guard | None,
        succeeds: bool = False,
    ) -> None:
        self.roster = roster
        self.writer = TraceWriter(session, say, how.keep, without=succeeds)
        self.engine = PtraceEngine(how.policy, self.writer, roster)
        self._guard = guard

    def leave(self, exit_status: int | None, began: bool = True) -> None:
        """End the session; `began` is False if CMD was never started."""
        self.writer.close(exit_status, began)
        if self._guard is not None:
            self._guard.dismiss()


def take_post(how: Supervision, session: Session, say: Say) -> Post:
    """Take the post of supervisor, with others to come if we die and CMD is not to.

    Raises:
        FlagshimError: there cannot be more processes; the session is taken back.
    """
    roster = Roster()

    def succeed(attempt: int) -> None:
        guard = None
        with contextlib.suppress(OSError):  # no more processes: then without one
            guard = start_guard(succeed, say, attempt)  # first: we may die at any point
        began = time.monotonic()
        tids = seize_again(roster, how.policy.exemption)
        took = time.monotonic() - began
        if not tids:
            if guard is not None:
                guard.dismiss()
            return
        pid = roster.command or min(tids)
        set_title(f"flagshim: supervisor of {pid}")
        stops = Stops()
        post = Post(how, session, say, roster, guard, succeeds=True)
        text = (
            f"the supervisor died; {os.getpid()} serves on, all found seized in {took * 1e3:.1f} ms"
        )
        post.writer.complain(text)
        post.writer.blind_spot("supervisor died", text_or_bytes(tracee.program_name(pid)))
        say(text)
        post.leave(exit_status_of(post.engine.go_on(tids, stops)))

    guard = None
    try:
        if how.policy.fate is Fate.CONTINUE:
            guard = start_guard(succeed, say)
        return Post(how, session, say, roster, guard)
    except OSError as error:
        if guard is not None:
            guard.dismiss()
        take_back(session)
        raise FlagshimError(
            f"cannot start a process of our own: {error.strerror}", hint_for(error, LIMITS)
        ) from None


def exit_status_of(status: int | None) -> int | None:
    """Return the exit status in a wait status, minus a fatal signal; None for none."""
    return None if status is None else os.waitstatus_to_exitcode(status)
