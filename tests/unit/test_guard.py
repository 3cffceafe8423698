"""The guard of the notify engine: what it does when supervisors cannot be had."""

import os
import signal
from typing import cast

from flagshim.engines.notify.crew import Crew
from flagshim.engines.notify.guard import Guard
from flagshim.engines.notify.lanes import Lane, Lanes
from flagshim.engines.notify.post import new_post
from flagshim.engines.policy import Policy
from flagshim.engines.stops import WAITED
from flagshim.rules import BUILT_IN
from flagshim.trace.writer import TraceWriter

LOOKS = 31
"""How often the guard looks around in a test, which it does twenty times a second at most."""


class Enough(Exception):
    """The guard has looked around often enough."""


class Doomed:
    """A crew of supervisors each of whom fails at its start."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self.started = 0

    def start(self, lane: Lane) -> bool:
        self.started += 1
        pid = os.fork()
        if pid == 0:
            os._exit(1)
        lane.pid = pid  # which both would write to
        return True

    def complete(self) -> bool:
        return any(lane.pid for lane in self._lanes) or self.start(next(iter(self._lanes)))


class Told:
    """Keeps what is written to a trace."""

    def __init__(self) -> None:
        self.troubles: list[str] = []
        self._looks = 0

    def complain(self, text: str) -> None:
        self.troubles.append(text)

    def flush(self) -> bool:
        self._looks += 1
        if self._looks > LOOKS:
            raise Enough
        return True


def test_supervisors_that_fail_at_once_are_not_started_all_the_time() -> None:
    """Nor is each told of: the guard of a virtual machine may be in that state for days."""
    listener, program = os.pipe()
    post = new_post(Policy([BUILT_IN]), listener, os.getpid(), "test")
    crew, told = Doomed(post.lanes), Told()
    said: list[str] = []
    former = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    guard = Guard(post, cast("Crew", crew), cast("TraceWriter", told), said.append)
    try:
        guard.run()
    except Enough:
        pass
    else:
        raise AssertionError("somebody is left to be served")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        for lane in post.lanes:
            if lane.pid:  # started in the last look
                os.waitpid(lane.pid, 0)
        for fd in (listener, program, *post.descriptors[1:]):
            os.close(fd)
    assert 7 <= crew.started < 13
    assert any("7 supervisors ended at once; opens go on unserved" in text for text in said)
    assert len(told.troubles) < 13
