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

from flagshim.engines.notify.lanes import Lane, State
from flagshim.engines.notify.leaving import MayWait
from flagshim.engines.notify.listener import Listener, notification_in
from flagshim.engines.notify.post import Baton, Post
from flagshim.engines.notify.serving import Server
from flagshim.engines.stops import SPIN_SECONDS
from flagshim.trace.events import Reason

_STRIKES = 3
"""How many supervisors may die with a call before it is let go on as it is."""


class Ended(Enum):
    """Why a supervisor has nothing more to do."""

    NOBODY_LEFT = auto()
    """Every thread with the filter has ended."""
    NO_GUARD = auto()
    """The guard was killed: somebody has to take its place."""


class Supervisor:
    """Serves a lane."""

    def __init__(self, post: Post, lane: Lane, guard: int) -> None:
        """Serve a lane.

        Args:
            post: what it is part of.
            lane: ours.
            guard: a pidfd of the guard.
        """
        self._lanes = post.lanes
        self._lane = lane
        self._poke = post.poke
        self._listener = Listener(post.listener)
        self._baton = Baton(post)
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

    def run(self) -> Ended:
        """Serve until there is nobody left, or no guard; then nobody else receives calls."""
        self._succeed()
        self._take_turn()
        while True:
            ended = self._wait()
            if ended is not None:
                return ended
            if self._listener.receive(self._lane.call_address):
                self._serve()

    def let_others_receive(self) -> None:
        """Have done with receiving calls."""
        self._baton.drop()

    def _succeed(self) -> None:
        """Go on with the call that the lane's former supervisor died with."""
        lane = self._lane
        if not lane.call_id:
            lane.forget_call()  # for what may be left of it
            return
        if not self._listener.is_waiting(lane.call_id):
            if lane.is_prepared and not lane.is_published():
                self._server.sink.publish(lane.given)
            lane.forget_call()
            return
        call = notification_in(lane.call)
        if lane.mark and self._server.go_on_giving(call):
            return
        lane.withdraw()
        if lane.strike() >= _STRIKES:
            self._server.sink.complain(f"{_STRIKES} supervisors died with one call; it went on")
            self._server.leave(call, Reason.NOT_RESCUED_FATAL)
        else:
            self._server.serve(call, patient=True)

    def _take_turn(self) -> None:
        self._lane.state = State.IN_RESERVE
        self._baton.take()
        self._lane.state = State.RECEIVING

    def _wait(self) -> Ended | None:
        """Wait for a call, after polling for a moment: waking an idle CPU takes longest."""
        poll = self._ears.poll
        events: dict[int, int] = {}
        if self._spin:
            end = time.perf_counter() + self._spin
            while not events and time.perf_counter() < end:
                os.sched_yield()
                events = dict(poll(0))
        while not events:
            events = dict(poll())
        if self._guard in events:
            return Ended.NO_GUARD
        return None if events[self._listener.fd] & select.POLLIN else Ended.NOBODY_LEFT

    def _serve(self) -> None:
        call = notification_in(self._lane.call)
        try:
            self._server.serve(call, patient=False)
            return
        except MayWait:
            pass
        self._lane.state = State.AWAY
        if not self._lanes.spare():
            self._server.leave(call, Reason.NOT_RESCUED_BUSY)
            self._lane.state = State.RECEIVING
            return
        self._baton.pass_on()
        with contextlib.suppress(OSError):  # full: the guard has much to look at as it is
            os.write(self._poke, b"a")
        self._server.serve(call, patient=True)
        self._take_turn()
