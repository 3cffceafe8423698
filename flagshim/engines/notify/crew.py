"""Starting the supervisors of a program: children of its guard, one for each lane in use."""

import contextlib
import errno
import functools
import os
import select
import signal
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from flagshim import descriptors
from flagshim.engines.notify.lanes import Lane, State
from flagshim.engines.notify.places import place_at
from flagshim.engines.notify.post import Post
from flagshim.engines.notify.serving import LaneSink
from flagshim.engines.notify.supervisor import Ended, Supervisor
from flagshim.linux.process import set_name, set_title
from flagshim.status import listeners

_DYING_SECONDS = 0.005

_P = ParamSpec("_P")
_T = TypeVar("_T")
Succeed = Callable[[Post], None]
"""What a supervisor does whose guard was killed."""
EXIT_NOBODY_LEFT = 0
_EXIT_FAILED = 1


class _Recruit(BaseException):
    """Raised in a new supervisor, to leave behind all that its parent was doing.

    A guard may be the successor of many, each a child of the one before.
    """

    def __init__(self, crew: "Crew", lane: Lane) -> None:
        super().__init__()
        self.crew = crew
        self.lane = lane


def guards(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a function be one in which supervisors may be started; they never return from it."""

    @functools.wraps(function)
    def guard(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except _Recruit as recruit:
            crew, lane = recruit.crew, recruit.lane
        status = _EXIT_FAILED
        try:
            while True:
                try:
                    status = crew.serve(lane)
                    break
                except _Recruit as recruit:
                    crew, lane = recruit.crew, recruit.lane
        finally:
            os._exit(status)

    return guard


class Crew:
    """The supervisors of one guard, which is who made this."""

    def __init__(self, post: Post, succeed: Succeed) -> None:
        """Be ready to start them.

        Args:
            post: what they serve.
            succeed: what becomes of one if the guard dies.
        """
        self._post = post
        self._succeed = succeed
        self._pidfd = os.pidfd_open(os.getpid())
        self._reign = post.lanes.reign

    def begin(self) -> None:
        """Start the first, and those for calls that a former guard's had received.

        Raises:
            OSError: there cannot be another process.
        """
        if not self.complete():
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def complete(self) -> bool:
        """Start those that are missing; tell whether that could be."""
        lanes = self._post.lanes
        # First who receives calls: the others may wait for filesystems for a long time.
        if not lanes.receiving():
            lane = next(filter(self._is_free, lanes), None)
            if lane is not None and not self.start(lane):
                return False
        return all(self.start(lane) for lane in lanes if lane.call_id and not lane.pid)

    def start(self, lane: Lane) -> bool:
        """Start one for a lane that has none; tell whether that could be."""
        lane.state = State.IN_RESERVE if self._is_free(lane) else State.AWAY
        try:
            pid = os.fork()
        except OSError:  # no more processes just now: another time
            return False
        if pid == 0:
            raise _Recruit(self, lane)
        lane.pid = pid
        return True

    def _is_free(self, lane: Lane) -> bool:
        """Tell whether a lane has no supervisor, not even one who is still dying, and no call."""
        return not (lane.pid or lane.call_id or self._post.places.holder(place_at(lane.number)))

    def serve(self, lane: Lane) -> int:
        """Be a supervisor, and if the guard dies, its successor; return the exit status."""
        try:
            set_name("flagshim")
            set_title(f"flagshim: supervisor of {self._post.command}")
            descriptors.blank(0, 1)
            descriptors.close_all_but(self._pidfd, *self._post.descriptors, *listeners())
            supervisor = Supervisor(self._post, lane, self._pidfd, self._reign)
            ended = supervisor.run()
        except Exception as error:
            text = f"supervisor {os.getpid()} failed: {type(error).__name__}: {error}"
            LaneSink(lane, self._post.poke).complain(text)
            return _EXIT_FAILED
        if ended is Ended.NO_GUARD:
            self._post.lanes.begin_reign()
            _end_others(self._post)
            supervisor.resign()
            self._succeed(self._post)
        return EXIT_NOBODY_LEFT


def _end_others(post: Post) -> None:
    """Kill all but ourselves: a guard can wait only for those it has started.

    One that waits for a filesystem may end later, if that is a program which waits for us.
    """
    for lane in post.lanes:
        lane.vacate()
        lane.pardon()
        place = place_at(lane.number)
        if pid := post.places.holder(place):
            with contextlib.suppress(OSError):
                end = os.pidfd_open(pid)
                if post.places.holder(place) == pid:
                    signal.pidfd_send_signal(end, signal.SIGKILL)
                    select.select([end], [], [], _DYING_SECONDS)
                os.close(end)
