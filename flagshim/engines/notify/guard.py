"""The guard: starts supervisors, again if they die, and writes down what they tell.

It has the listener all along, so that calls wait for the next supervisor, and it touches no
program, so that nothing a program does can be its end. If it is killed itself, the supervisor
that receives calls takes its place.
"""

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable
from operator import attrgetter
from typing import NoReturn

from flagshim import descriptors, tracee
from flagshim.engines.notify.lanes import Lane, State
from flagshim.engines.notify.listener import (
    NOTIFICATION_SIZE,
    Gone,
    Listener,
    notification_in,
)
from flagshim.engines.notify.post import Baton, Post
from flagshim.engines.notify.serving import EVENT, SPOT, TROUBLE, LaneSink, as_event
from flagshim.engines.notify.supervisor import Ended, Supervisor
from flagshim.engines.relay import Relay
from flagshim.engines.stops import WAITED
from flagshim.errors import Say
from flagshim.linux import address_of, open_signals, set_name, set_title
from flagshim.status import listeners
from flagshim.trace.events import OpenEvent, text_or_bytes
from flagshim.trace.writer import TraceWriter

_LOOK_SECONDS = 0.05
"""How long supervisors that have much to tell are left alone with it."""
_CLOSE_UP_SECONDS = 0.005
_IDLE_DEATHS_MAX = 7
"""How many supervisors may end one after the other without having answered a call, or how often
none can be started."""
_OVER_SECONDS = 1.0
"""How long supervisors may take to see that nobody is left."""

Succeed = Callable[[Post], None]
"""What a supervisor does whose guard was killed."""
EXIT_NOBODY_LEFT = 0


class Guard:
    """Keeps a post manned."""

    def __init__(self, post: Post, writer: TraceWriter, say: Say, succeed: Succeed) -> None:
        """Guard a post.

        Args:
            post: to be kept.
            writer: of the trace.
            say: how to tell of a supervisor that died.
            succeed: what becomes of a supervisor if we die.
        """
        self._post = post
        self._writer = writer
        self._say = say
        self._succeed = succeed
        self._deaths = 0
        self._idle_deaths = 0
        """How many died one after the other without having answered a call."""
        self._answered_before = 0
        self._command_status: int | None = None
        self._command_stopped = False
        self._nobody_left = False
        self._leaving = False
        self._pidfd = os.pidfd_open(os.getpid())
        self._signals = open_signals(WAITED)
        self._ears = select.poll()
        self._ears.register(self._signals, select.POLLIN)
        self._ears.register(post.wake, select.POLLIN)
        self._ears.register(post.listener, 0)  # its end is told all the same
        self._listener = Listener(post.listener)
        self._over_at = 0.0

    def begin(self) -> None:
        """Start the first supervisor, and those for calls that a former guard's had received.

        Raises:
            OSError: there cannot be another process.
        """
        for lane in self._post.lanes:
            if (lane.call_id or lane.number == 0) and not self._start(lane):
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

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
        os.close(self._signals)
        os.close(self._pidfd)
        return self._command_status

    # --- waiting ------------------------------------------------------------------------

    def _sleep(self, seconds: float | None, relay: Relay | None) -> None:
        for fd, events in self._ears.poll(None if seconds is None else seconds * 1000):
            if fd == self._post.listener and events & (select.POLLHUP | select.POLLERR):
                self._nobody_is_left()
        with contextlib.suppress(BlockingIOError):
            os.read(self._post.wake, 4096)
        while info := signal.sigtimedwait(WAITED, 0):
            if relay is not None and info.si_signo != signal.SIGCHLD:
                relay.signalled(info)

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
        baton = Baton(self._post)
        try:
            if not baton.try_to_take():
                return
            ready = select.poll()
            ready.register(self._post.listener, select.POLLIN)
            memory = bytearray(NOTIFICATION_SIZE)
            while any(events & select.POLLIN for _, events in ready.poll(0)):
                memory[:] = bytes(NOTIFICATION_SIZE)
                if self._listener.receive(address_of(memory)):
                    call = notification_in(bytes(memory))
                    program = text_or_bytes(tracee.program_name(call.tid))
                    self._writer.blind_spot("no supervisor", program)
                    with contextlib.suppress(Gone):
                        self._listener.let_go_on(call.id)
        finally:
            baton.drop()

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
        if not any(lane.state in (State.RECEIVING, State.IN_RESERVE) for lane in lanes):
            for lane in lanes:
                if lane.state is State.NOBODY:
                    return self._start(lane)
        return True

    def _answered(self) -> int:
        return sum(each.answered for each in self._post.lanes)

    def _replace(self, lane: Lane, status: int) -> None:
        former = lane.pid
        self._deaths += 1
        answered = self._answered()
        self._idle_deaths = 0 if answered > self._answered_before else self._idle_deaths + 1
        self._answered_before = answered
        if 1 < self._idle_deaths < _IDLE_DEATHS_MAX:
            time.sleep(_CLOSE_UP_SECONDS * 2**self._idle_deaths)
        started = self._start(lane)
        how = os.waitstatus_to_exitcode(status)
        cause = f"was killed by signal {-how}" if how < 0 else f"ended with {how}"
        successor = f"{lane.pid} serves on" if started else "none can be started just now"
        text = f"supervisor {former} {cause}; {successor}, no call was lost"
        if self._idle_deaths < _IDLE_DEATHS_MAX:
            self._writer.complain(text)
        elif self._idle_deaths == _IDLE_DEATHS_MAX:
            text = f"{_IDLE_DEATHS_MAX} supervisors ended at once; opens go on unserved meanwhile"
            self._writer.complain(text)
            self._say(f"{text}; see ulimit -n, ulimit -u and ulimit -v")
        if self._deaths == 1:
            self._say(f"{text} (said once; see the trace for others)")

    def _start(self, lane: Lane) -> bool:
        lane.state = State.IN_RESERVE
        try:
            pid = os.fork()
        except OSError:  # no more processes just now: another time
            lane.vacate()
            return False
        if pid == 0:
            self._be_supervisor(lane)
        lane.pid = pid
        return True

    def _be_supervisor(self, lane: Lane) -> NoReturn:
        status = 1
        try:
            set_name("flagshim")
            set_title(f"flagshim: supervisor of {self._post.command}")
            descriptors.blank(0, 1)
            descriptors.close_all_but(self._pidfd, *self._post.descriptors, *listeners())
            supervisor = Supervisor(self._post, lane, self._pidfd)
            if supervisor.run() is Ended.NO_GUARD:
                end_supervisors(self._post)
                supervisor.let_others_receive()
                self._succeed(self._post)
            status = EXIT_NOBODY_LEFT
        except Exception as error:
            text = f"supervisor {os.getpid()} failed: {type(error).__name__}: {error}"
            LaneSink(self._post.lanes, lane, self._post.poke).complain(text)
        finally:
            os._exit(status)


def end_supervisors(post: Post) -> None:
    """End all but ourselves: a guard can wait only for those it has started."""
    for lane in post.lanes:
        pid = lane.pid
        lane.vacate()
        if pid in (0, os.getpid()):
            continue
        with contextlib.suppress(OSError):
            end = os.pidfd_open(pid)
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                ours = file.read().startswith(f"flagshim: supervisor of {post.command}".encode())
            if ours:
                signal.pidfd_send_signal(end, signal.SIGKILL)
                select.select([end], [], [])
            os.close(end)
