"""The guard: has supervisors started, again if they die, and writes down what they tell.

It has the listener all along, so that calls wait for the next supervisor, and it touches no
program, so that nothing a program does can be its end. If it is killed itself, the supervisor
that receives calls takes its place.
"""

import contextlib
import os
import select
import signal
import time
from operator import attrgetter

from flagshim import tracee
from flagshim.engines.notify.crew import EXIT_NOBODY_LEFT, Crew
from flagshim.engines.notify.idlepoll import IdlePoller
from flagshim.engines.notify.lanes import Lane, State
from flagshim.engines.notify.listener import (
    NOTIFICATION_SIZE,
    Listener,
    Notification,
    notification_in,
)
from flagshim.engines.notify.places import RECEIVER, place_at
from flagshim.engines.notify.post import Post
from flagshim.engines.notify.serving import EVENT, SPOT, TROUBLE, Server, as_event
from flagshim.engines.notify.unseen import leave_unseen
from flagshim.engines.relay import Relay
from flagshim.engines.stops import WAITED
from flagshim.errors import LIMITS
from flagshim.linux.libc import address_of
from flagshim.linux.process import open_signals
from flagshim.saying import Say
from flagshim.trace.events import OpenEvent, text_or_bytes
from flagshim.trace.writer import TraceWriter

_LOOK_SECONDS = 0.05
"""How long supervisors that have much to tell are left alone with it."""
_CLOSE_UP_SECONDS = 0.005
_IDLE_DEATHS_MAX = 7
"""How many supervisors may end one after the other without having answered a call, or how often
none can be started."""
_REST_SECONDS = 1.0
_OVER_SECONDS = 1.0
"""How long supervisors may take to see that nobody is left."""


class Guard:
    """Keeps a post manned."""

    def __init__(self, post: Post, crew: Crew, writer: TraceWriter, say: Say) -> None:
        """Guard a post.

        Args:
            post: to be kept.
            crew: who serves it.
            writer: of the trace.
            say: how to tell of a supervisor that died.
        """
        self._post = post
        self._crew = crew
        self._writer = writer
        self._say = say
        self._deaths = 0
        self._idle_deaths = 0
        """How many died one after the other without having answered a call."""
        self._answered_before = 0
        self._command_status: int | None = None
        self._command_stopped = False
        self._nobody_left = False
        self._leaving = False
        self._signals = open_signals(WAITED)
        self._ears = select.poll()
        self._ears.register(self._signals, select.POLLIN)
        self._ears.register(post.wake, select.POLLIN)
        self._ears.register(post.listener, 0)  # its end is told all the same
        self._listener = Listener(post.listener)
        self._poller = IdlePoller(post.lanes, post.alarm, post.command)
        self._hears_alarm = False
        self._over_at = 0.0
        self._rest_until = 0.0
        """No supervisor is started before: one after the other has died at once."""

    def run(self, command: int | None = None) -> int | None:
        """Guard until every thread with the filter has ended.

        Args:
            command: a child of ours that is the command: signals that are sent to us are passed
                on to it.

        Returns:
            The wait status of the command; None without one, or if we were asked to end while
            what it left goes on.
        """
        relay = None
        if command is not None:
            relay = Relay(lambda: self._recipients(command), lambda: self._command_stopped)
        unmanned = 0
        while True:
            if command is not None and self._command_status is None:
                self._look_after(command)
            told = self._listen()
            if self._over_at and time.monotonic() > self._over_at:
                self._end_the_stopped()
            manned = self._keep_manned()
            self._look_after_the_poller()
            unmanned = 0 if manned else unmanned + 1
            if self._answered() > self._answered_before:
                self._idle_deaths = 0
            alone = max(self._idle_deaths, unmanned) >= _IDLE_DEATHS_MAX
            if alone:
                self._serve_alone()
            if manned is None:
                break
            attend_again = relay is not None and relay.attend()
            if self._leaving:
                break
            sent = self._writer.flush()  # what we hold is lost with us, what lanes hold is not
            if self._post.lanes.guard_looks_soon and not told:
                self._post.lanes.guard_looks_soon = False  # and look once more, before we sleep
                continue
            self._post.lanes.guard_looks_soon = told
            idle = sent and manned and not (told or attend_again or self._over_at or alone)
            self._sleep(None if idle else _LOOK_SECONDS, relay)
        if command is not None and self._command_status is None:
            # Its filter is gone, so it is ending, but it can be waited for only when it has let
            # go of its memory as well.
            self._command_ended(os.waitpid(command, 0)[1])
        self._listen()
        self._poller.end()
        os.close(self._signals)
        return self._command_status

    # --- waiting ------------------------------------------------------------------------

    def _sleep(self, seconds: float | None, relay: Relay | None) -> None:
        for fd, events in self._ears.poll(None if seconds is None else seconds * 1000):
            if fd == self._post.listener and events & (select.POLLHUP | select.POLLERR):
                self._nobody_is_left()
            elif fd == self._post.alarm:  # from now on it is the poller's
                self._poller.start()
                self._look_after_the_poller()
        with contextlib.suppress(BlockingIOError):
            os.read(self._post.wake, 4096)
        while info := signal.sigtimedwait(WAITED, 0):
            if relay is not None and info.si_signo != signal.SIGCHLD:
                relay.signalled(info)

    def _look_after_the_poller(self) -> None:
        self._poller.look_after()
        if self._poller.is_wanted and not self._hears_alarm:
            self._ears.register(self._post.alarm, select.POLLIN)
        elif self._hears_alarm and not self._poller.is_wanted:
            self._ears.unregister(self._post.alarm)
        self._hears_alarm = self._poller.is_wanted

    def _nobody_is_left(self) -> None:
        """Have the supervisors see it, too; or end those that do not, because they are stopped."""
        self._ears.unregister(self._post.listener)
        self._over_at = time.monotonic() + _OVER_SECONDS

    def _end_the_stopped(self) -> None:
        for lane in self._post.lanes:
            if lane.pid:
                os.kill(lane.pid, signal.SIGKILL)
                os.waitpid(lane.pid, 0)
                lane.vacate()
            if lane.call_id and lane.is_prepared and not lane.is_published():
                lane.publish(lane.given)
            self._nobody_left = True

    def _serve_alone(self) -> None:
        """Let calls go on as they are while no supervisor comes up: better than to hold them."""
        places = self._post.places
        if not places.try_to_take(RECEIVER):
            return
        try:
            for lane in self._post.lanes:
                if lane.call_id and not lane.pid and not places.holder(place_at(lane.number)):
                    with contextlib.suppress(OSError):  # no descriptor left: another time
                        self._finish(lane)
            ready = select.poll()
            ready.register(self._post.listener, select.POLLIN)
            memory = bytearray(NOTIFICATION_SIZE)
            until = time.monotonic() + _LOOK_SECONDS  # and then see whether one can be started
            while time.monotonic() < until and any(
                events & select.POLLIN for _, events in ready.poll(0)
            ):
                memory[:] = bytes(NOTIFICATION_SIZE)
                if self._listener.receive(address_of(memory)):
                    self._let_go_on(notification_in(bytes(memory)))
        finally:
            places.leave(RECEIVER)

    def _finish(self, lane: Lane) -> None:
        """Have done with a call that a supervisor has died with."""
        post = self._post
        server = Server(
            post.policy, self._listener, post.lanes, lane, post.confined, post.poke
        )  # fmt: skip
        if call := server.settle():
            self._let_go_on(call)
            lane.forget_call()

    def _let_go_on(self, call: Notification) -> None:
        program = text_or_bytes(tracee.program_name(call.tid))
        self._writer.blind_spot("no supervisor", program)
        leave_unseen(call, self._listener, self._post.lanes)

    def _recipients(self, command: int) -> set[int]:
        """Return who gets a signal that was sent to us.

        Once the command has ended it is for us, who were waiting for what that left behind.
        """
        if self._command_status is None:
            self._look_after(command)
        if self._command_status is None:
            return {command}
        self._leaving = True
        self._post.lanes.guard_leaves = True
        return set()

    def _look_after(self, command: int) -> None:
        """Take note of what becomes of the command, our child."""
        options = os.WNOHANG | os.WUNTRACED | os.WCONTINUED
        while True:
            pid, status = os.waitpid(command, options)
            if not pid:
                return
            if os.WIFSTOPPED(status):
                self._command_stopped = True
            elif os.WIFCONTINUED(status):
                self._command_stopped = False
            else:
                self._command_ended(status)
                return

    def _command_ended(self, status: int) -> None:
        self._command_status = status
        self._post.confined.command_ended(status)

    def _listen(self) -> bool:
        """Write down what supervisors tell; tell whether they did."""
        events: list[OpenEvent] = []
        told = False
        for lane in self._post.lanes:
            for record, descriptor in lane.told():
                told = True
                match record:
                    case (str(kind), *_) if kind == EVENT:
                        events.append(as_event(record, descriptor))
                    case (str(kind), str(spot), str() | bytes() as program) if kind == SPOT:
                        self._writer.blind_spot(spot, program)
                    case (str(kind), str(text)) if kind == TROUBLE:
                        if self._idle_deaths < _IDLE_DEATHS_MAX:  # it would be the same again
                            self._writer.complain(text)
            if lost := lane.take_lost():
                self._writer.lose(lost, "the guard did not get enough CPU")
        for event in sorted(events, key=attrgetter("time_ns")):
            self._writer.record(event)
        return told

    # --- supervisors --------------------------------------------------------------------

    def _keep_manned(self) -> bool | None:
        """Start supervisors where some are missing.

        Returns:
            Whether somebody receives calls; None if nobody has to any more.
        """
        lanes = self._post.lanes
        for lane in lanes:
            if not lane.pid:
                continue
            pid, status = os.waitpid(lane.pid, os.WNOHANG)
            if not pid:
                continue
            if os.waitstatus_to_exitcode(status) == EXIT_NOBODY_LEFT:
                lane.vacate()
                self._nobody_left = True
            else:
                self._replace(lane, status)
        if self._nobody_left:
            return None if all(lane.state is State.NOBODY for lane in lanes) else True
        if time.monotonic() < self._rest_until:
            return False
        return self._crew.complete()

    def _answered(self) -> int:
        return sum(each.answered for each in self._post.lanes)

    def _replace(self, lane: Lane, status: int) -> None:
        former = lane.pid
        lane.vacate()
        self._deaths += 1
        answered = self._answered()
        self._idle_deaths = 0 if answered > self._answered_before else self._idle_deaths + 1
        self._answered_before = answered
        if 1 < self._idle_deaths < _IDLE_DEATHS_MAX:
            time.sleep(_CLOSE_UP_SECONDS * 2**self._idle_deaths)
        if self._idle_deaths >= _IDLE_DEATHS_MAX:
            self._rest_until = time.monotonic() + _REST_SECONDS
            started = False
        else:
            started = self._crew.start(lane)
        how = os.waitstatus_to_exitcode(status)
        cause = f"was killed by signal {-how}" if how < 0 else f"ended with {how}"
        successor = f"{lane.pid} serves on" if started else "none can be started just now"
        text = f"supervisor {former} {cause}; {successor}, no call was lost"
        if self._idle_deaths < _IDLE_DEATHS_MAX:
            self._writer.complain(text)
        elif self._idle_deaths == _IDLE_DEATHS_MAX:
            text = f"{_IDLE_DEATHS_MAX} supervisors ended at once; opens go on unserved meanwhile"
            self._writer.complain(text)
            self._say(f"{text}; {LIMITS}")
        if self._deaths == 1:
            self._say(f"{text} (said once; see the trace for others)")
