"""A supervisor of the notify engine: receives calls and answers them, until nobody is left.

There may be several. One receives calls. If it comes upon a call that may have to wait for a
filesystem, it first lets another receive: the filesystem's server may be a program that has
to be served itself (FUSE).
"""

import contextlib
import os
import select
import time
from enum import Enum, auto

from flagshim.engines.notify.idlepoll import Pace
from flagshim.engines.notify.lanes import Lane, State
from flagshim.engines.notify.leaving import MayWait
from flagshim.engines.notify.listener import Listener, notification_in
from flagshim.engines.notify.places import RECEIVER, place_at
from flagshim.engines.notify.post import Post
from flagshim.engines.notify.serving import Server
from flagshim.engines.stops import SPIN_SECONDS
from flagshim.trace.events import Reason

_MOMENT_SECONDS = 0.002
_RELIEF_SECONDS = 1.0
_STRIKES = 3
"""How many supervisors may die with a call before it is let go on as it is."""


class Ended(Enum):
    """Why a supervisor has nothing more to do."""

    NOBODY_LEFT = auto()
    """Every thread with the filter has ended."""
    NO_GUARD = auto()
    """The guard was killed: somebody has to take its place."""
    DEPOSED = auto()
    """The guard was killed, and another has taken its place."""


class Supervisor:
    """Serves a lane."""

    def __init__(self, post: Post, lane: Lane, guard: int, reign: int) -> None:
        """Serve a lane.

        Args:
            post: what it is part of.
            lane: ours.
            guard: a pidfd of the guard.
            reign: that guard's.
        """
        self._lanes = post.lanes
        self._lane = lane
        self._poke = post.poke
        self._listener = Listener(post.listener)
        self._places = post.places
        self._reign = reign
        self._server = Server(
            post.policy, self._listener, post.lanes, lane, post.confined, post.poke
        )  # fmt: skip
        self._guard = guard
        self._ears = select.poll()
        self._ears.register(post.listener, select.POLLIN)
        self._ears.register(guard, select.POLLIN)
        # On one CPU nobody else runs while we poll.
        alone = self._listener.share_a_cpu() or len(os.sched_getaffinity(0)) == 1
        self._spin = 0.0 if alone else SPIN_SECONDS
        self._pace = Pace(post.lanes, post.alarm)

    def run(self) -> Ended:
        """Serve until there is nobody left, or no guard; then nobody else receives calls."""
        while not self._places.try_to_take(place_at(self._lane.number)):
            # For who was killed, but waits for a filesystem.
            if self._is_deposed() or self._is_next_after(_MOMENT_SECONDS):
                return self._unless_deposed()
        # Had we this place earlier, who came to be guard has seen us, and has killed us.
        if self._is_deposed():
            return Ended.DEPOSED
        if not self._succeed():
            return self._unless_deposed()
        self._take_turn()
        while True:
            ended = self._wait()
            if ended is None and self._listener.receive(self._lane.call_address):
                self._pace.step()
                ended = self._serve()
            if ended is Ended.NO_GUARD:
                return self._unless_deposed()
            if ended is not None:
                return ended

    def resign(self) -> None:
        """Let others receive calls, and have our lane; nothing more is served."""
        self._server.close()
        self._places.leave(place_at(self._lane.number))
        self._places.leave(RECEIVER)

    def _is_deposed(self) -> bool:
        return self._lanes.reign != self._reign

    def _unless_deposed(self) -> Ended:
        """Return what becomes of us, whose guard died and who may receive calls."""
        return Ended.DEPOSED if self._is_deposed() else Ended.NO_GUARD

    def _is_next_after(self, seconds: float) -> bool:
        """Wait; tell whether the guard is dead, and nobody else receives calls: we do then."""
        time.sleep(seconds)
        guard_died = select.select([self._guard], [], [], 0)[0]
        return bool(guard_died) and self._places.try_to_take(RECEIVER)

    def _succeed(self) -> bool:
        """Go on with the call that the lane's former supervisor died with.

        Returns:
            False if the guard was killed meanwhile, and nobody else receives calls.
        """
        call = self._server.settle()
        if call is None:
            return True
        if self._lane.strike() >= _STRIKES:
            self._server.sink.complain(f"{_STRIKES} supervisors died with one call; it went on")
            self._server.serve(call, patient=False, reason=Reason.NOT_RESCUED_FATAL)
            return True
        try:
            self._server.serve(call, patient=False)
        except MayWait:
            if not self._is_relieved():
                return False
            self._server.serve(call, patient=True)
        return True

    def _take_turn(self) -> None:
        self._lane.state = State.IN_RESERVE
        self._places.take(RECEIVER)
        self._lane.state = State.RECEIVING

    def _wait(self) -> Ended | None:
        """Wait for a call, after polling for a moment: waking an idle CPU takes longest."""
        poll = self._ears.poll
        events: list[tuple[int, int]] = []
        if self._spin:
            end = time.perf_counter() + self._spin
            while not events and time.perf_counter() < end:
                os.sched_yield()
                events = poll(0)
        while not events:
            events = poll()
        fd, what = events[0]
        if fd == self._guard or len(events) > 1:
            return Ended.NO_GUARD
        return None if what & select.POLLIN else Ended.NOBODY_LEFT

    def _serve(self) -> Ended | None:
        call = notification_in(self._lane.call)
        try:
            self._server.serve(call, patient=False)
            return None
        except MayWait:
            pass
        self._lane.state = State.AWAY
        if not self._lanes.spare():
            self._server.serve(call, patient=False, reason=Reason.NOT_RESCUED_BUSY)
            self._lane.state = State.RECEIVING
            return None
        self._places.leave(RECEIVER)
        with contextlib.suppress(OSError):  # full: the guard has much to look at as it is
            os.write(self._poke, b"a")
        if not self._is_relieved():
            return Ended.NO_GUARD
        self._server.serve(call, patient=True)
        self._take_turn()
        return None

    def _is_relieved(self) -> bool:
        """Wait until another is there to receive calls; or for long enough, if none can be.

        Returns:
            False if the guard was killed before it has started one: that is for us to do, who
            receive calls.
        """
        give_up_at = time.monotonic() + _RELIEF_SECONDS
        while time.monotonic() < give_up_at:
            # What a lane says of its supervisor is old news if that has just been killed.
            for lane in self._lanes.receiving():
                if self._places.holder(place_at(lane.number)):
                    return True
            if self._is_next_after(_MOMENT_SECONDS):
                return False
        return True
