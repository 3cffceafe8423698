"""Answering one call, in an order that a successor can go on from at any point of it."""

import contextlib
import errno
import itertools
import os
import random
import time
from collections.abc import Iterator

from flagshim import tracee
from flagshim.engines.calls import CallReader, OpenCall, Process, event_of
from flagshim.engines.notify.filesystems import Filesystems
from flagshim.engines.notify.lanes import Lane, Lanes
from flagshim.engines.notify.leaving import Leave, MayWait
from flagshim.engines.notify.listener import Gone, Listener, Notification, notification_in
from flagshim.engines.notify.lookup import Lookup
from flagshim.engines.notify.opener import Opener
from flagshim.engines.notify.repeats import Repeats
from flagshim.engines.notify.standing import Impersonation, Standing, Standings
from flagshim.engines.notify.unseen import kind_of_call, leave_unseen
from flagshim.engines.policy import Policy
from flagshim.engines.roster import Roster
from flagshim.syscalls import SECCOMP_FILTER_FLAG_NEW_LISTENER, Kind
from flagshim.trace.events import OpenEvent, Reason

EVENT, SPOT, TROUBLE = "event", "spot", "trouble"
"""What a record of a lane begins with."""


class LaneSink:
    """Tells of what is not the answer to a call."""

    def __init__(self, lane: Lane, poke: int) -> None:
        self._lane = lane
        self._poke = poke

    def blind_spot(self, kind: str, program: str | bytes) -> None:
        """Count something that may have opened files unseen."""
        self.tell((SPOT, kind, program))

    def complain(self, text: str) -> None:
        """Note something that people should know of."""
        self.tell((TROUBLE, text))

    def tell(self, record: tuple[object, ...]) -> None:
        """Tell the guard something at once."""
        if self._lane.prepare(record, is_event=False):
            self.publish()
            self._lane.withdraw()

    def publish(self, descriptor: int | None = None) -> None:
        """Tell what was prepared, and wake the guard if it may sleep."""
        if self._lane.publish(descriptor):
            self.wake()

    def wake(self) -> None:
        """Have the guard look at what was published."""
        with contextlib.suppress(OSError):  # full: it is awake; broken: it is dead
            os.write(self._poke, b"r")


class Server:
    """Applies rules to the calls that a listener receives."""

    def __init__(
        self,
        policy: Policy,
        listener: Listener,
        lanes: Lanes,
        lane: Lane,
        confined: Roster,
        poke: int,
    ) -> None:
        """Serve one lane.

        Args:
            policy: what to do with programs.
            listener: that calls come from.
            lanes: all of them.
            lane: ours.
            confined: processes that have confined themselves; knows the command, too.
            poke: a pipe to the guard.
        """
        self.sink = LaneSink(lane, poke)
        self._policy = policy
        self._listener = listener
        self._lanes = lanes
        self._lane = lane
        self._confined = confined
        self._reader = CallReader(policy.rules, self.sink)
        self._standings = Standings(lanes)
        self._lookup = Lookup(self._standings)
        impersonation, filesystems = Impersonation(), Filesystems()
        self._opener = Opener(self._lookup, impersonation, filesystems)
        self._repeats = Repeats(
            lanes, self._standings, self._lookup, impersonation, filesystems
        )  # fmt: skip
        self._processes: dict[int, tuple[bytes, Process]] = {}
        """By PID: the executable, and what goes with it."""
        self._marks = itertools.count(random.randrange(_MARKS))

    def serve(self, call: Notification, patient: bool, reason: Reason | None = None) -> None:
        """Answer the call of our lane.

        Args:
            call: that.
            patient: whether a filesystem may be waited for.
            reason: why it is to go on as it is, if that has nothing to do with it.

        Raises:
            MayWait: only if not patient; nothing was done then.
        """
        try:
            self._answer(call, patient, reason)
        except MayWait:
            raise
        except (Gone, ProcessLookupError):  # killed, most likely, and then this is in vain
            leave_unseen(call, self._listener, self._lanes)
        except Exception as error:  # whatever it is, it must not cost the program its call
            self.sink.blind_spot(f"error in flagshim, {type(error).__name__}: {error}", b"?")
            leave_unseen(call, self._listener, self._lanes)
        self._lane.forget_call()

    def close(self) -> None:
        """Let go of the descriptors that are kept from one call to the next."""
        self._standings.close()

    def _answer(self, call: Notification, patient: bool, reason: Reason | None) -> None:
        kind = kind_of_call(call)
        if kind is None or not call.tid:
            if kind is not None:
                self.sink.blind_spot("thread of another PID namespace", b"?")
            leave_unseen(call, self._listener, self._lanes)
            return
        if not patient and reason is None and (again := self._repeats.open(kind, call)):
            event, file, closes_on_exec = again
            if file is None:
                self._let_go_on_with(call, event)
            else:
                self._hand_over(call, event, file, closes_on_exec)
            return
        thread = self._standings.of(call.tid)
        executable, process = self._process(thread.pid, call.tid)
        open_call = None
        shares_root = False

        def root() -> bytes:
            nonlocal shares_root
            shares_root = self._lookup.shares_root(call.tid)
            return b"/" if shares_root else tracee.root_of(call.tid)

        if self._is_open(kind, call, process):
            key = (call.instruction, 0, call.number, *call.arguments)
            open_call = self._reader.read(
                call.tid, kind, call.audit_arch, key, process, root
            )  # fmt: skip
        if open_call is None:
            self._listener.let_go_on(call.id)
            return
        open_call.tries = 1
        try:
            self._check(open_call, call.tid, thread, reason)
            if kind is Kind.SETFL:
                event = self._set_flags(call, open_call, thread, process)
            else:
                event = self._open(call, open_call, thread, process, shares_root, patient)
        except Leave as leave:
            event = self._leave(call, open_call, thread, process, leave)
        if not self._policy.exemption.programs:
            self._repeats.learn(call, open_call, process, executable, event)

    def _is_open(self, kind: Kind, call: Notification, process: Process) -> bool:
        """Take note of a call that is no open; tell whether it is one that rules are for."""
        if kind is Kind.IO_URING:
            self.sink.blind_spot("io_uring", process.program)
        elif kind is Kind.LISTENER:
            if call.arguments[1] & SECCOMP_FILTER_FLAG_NEW_LISTENER:
                self.sink.blind_spot("seccomp listener", process.program)
        elif kind is Kind.LANDLOCK:
            self._confined.add(process.pid)
            no_new_privs = tracee.has_no_new_privs(call.tid)
            self._lanes.confine_someone(_now_in_ticks(), no_new_privs)
            self.sink.blind_spot("landlock", process.program)
        elif kind is Kind.GROUPS:
            self._lanes.change_someones_groups()
        elif self._policy.exemption.programs and self._is_exempt(process.pid):
            self.sink.blind_spot("exempt", process.program)
        else:
            return True
        return False

    def _check(self, call: OpenCall, tid: int, thread: Standing, reason: Reason | None) -> None:
        if not call.clear and not call.verdict.clear_on:
            raise Leave(Reason.FORESEEN if call.verdict.matched else Reason.NO_RULE)
        if reason is not None:
            raise Leave(reason)
        if self._lanes.someone_confined and self._may_be_confined(tid, thread.pid):
            raise Leave(Reason.NOT_RESCUED_CONFINED)

    # --- answers ------------------------------------------------------------------------

    def _open(
        self,
        call: Notification,
        open_call: OpenCall,
        thread: Standing,
        process: Process,
        shares_root: bool,
        patient: bool,
    ) -> OpenEvent:
        def is_waiting() -> bool:
            return self._listener.is_waiting(call.id)

        opened = self._opener.open(
            open_call, call.tid, thread, shares_root, is_waiting, patient
        )  # fmt: skip
        open_call.cleared = open_call.clear
        event = event_of(open_call, call.tid, process, thread.fsuid, opened.path, None, None)
        self._hand_over(call, event, opened.fd, open_call.flags & os.O_CLOEXEC)
        return event

    def _hand_over(
        self, call: Notification, event: OpenEvent, file: int, closes_on_exec: int
    ) -> None:
        """Have a call return a file of ours, which is closed then, and tell of it.

        The offset of the file, which the thread has not seen yet, tells a successor of ours
        which of the thread's descriptors that is, if we die in the middle.
        """
        lane = self._lane
        mark = next(self._marks)
        try:
            try:
                os.lseek(file, mark, os.SEEK_SET)
            except OSError:  # a directory or filesystem without such offsets: then without
                mark = 0
            told = lane.prepare((EVENT, *event), mark=mark)
            given = None
            try:
                given = lane.given = self._listener.give(call.id, file, closes_on_exec)
                if mark:
                    os.lseek(file, 0, os.SEEK_SET)
                self._listener.answer(call.id, given)
            except Gone:
                given = None
            except OSError as error:  # EMFILE: the thread has no room for another
                given = None
                number = error.errno or errno.EMFILE
                name = errno.errorcode.get(number, str(number))
                told = lane.prepare((EVENT, *event._replace(errno=name)))
                self._listener.fail(call.id, number)
            if told and lane.publish(given):
                self.sink.wake()
        finally:
            os.close(file)

    def settle(self) -> Notification | None:
        """Have done with the call that our lane's former supervisor died with, if it had.

        Returns:
            The call, if that is still to be served or let go on.
        """
        lane = self._lane
        if not lane.call_id:
            lane.forget_call()  # for what may be left of it
            return None
        if not self._listener.is_waiting(lane.call_id):
            if lane.is_prepared and not lane.is_published():
                self.sink.publish(lane.given)
            lane.forget_call()
            return None
        call = notification_in(lane.call)
        if lane.mark and self._go_on_giving(call):
            return None
        lane.withdraw()
        return call

    def _go_on_giving(self, call: Notification) -> bool:
        """Answer a call whose thread has its descriptor already; False if it has not."""
        given = self._lane.given
        if given is None:
            given = self._opener.marked(call.tid, self._lane.mark)
        if given is None:
            return False
        self._opener.rewind(call.tid, given, self._lane.mark)
        with contextlib.suppress(Gone):
            self._listener.answer(call.id, given)
        if self._lane.is_prepared:
            self.sink.publish(given)
        self._lane.forget_call()
        return True

    def _set_flags(
        self, call: Notification, open_call: OpenCall, thread: Standing, process: Process
    ) -> OpenEvent:
        path = self._opener.set_flags(
            open_call, call.tid, thread, lambda: self._listener.is_waiting(call.id)
        )
        open_call.cleared = open_call.clear
        event = event_of(open_call, call.tid, process, thread.fsuid, path, 0, None)
        told = self._lane.prepare((EVENT, *event))
        with contextlib.suppress(Gone):
            self._listener.answer(call.id, 0)
        if told:
            self.sink.publish(0)
        return event

    def _leave(
        self,
        call: Notification,
        open_call: OpenCall,
        thread: Standing,
        process: Process,
        leave: Leave,
    ) -> OpenEvent:
        open_call.rules.clear()
        error = errno.errorcode.get(leave.number) if leave.number else None
        event = event_of(
            open_call, call.tid, process, thread.fsuid, open_call.full, None, error, leave.reason
        )
        self._let_go_on_with(call, event)
        return event

    def _let_go_on_with(self, call: Notification, event: OpenEvent) -> None:
        """Have the kernel make the call as the program asked, and tell of it."""
        told = self._lane.prepare((EVENT, *event))
        with contextlib.suppress(Gone):
            self._listener.let_go_on(call.id)
        if told:
            self.sink.publish()

    # --- who ----------------------------------------------------------------------------

    def _process(self, pid: int, tid: int) -> tuple[bytes, Process]:
        """Return what a process runs, and what is known of it as long as it runs that."""
        executable = tracee.executable(tid)
        known = self._processes.get(pid)
        if known is not None and known[0] == executable:
            return known
        if len(self._processes) >= _PROCESSES_MAX:
            self._processes.clear()
        process = self._reader.process(pid, tracee.name_of(executable))
        known = self._processes[pid] = executable, process
        return known

    def _is_exempt(self, pid: int) -> bool:
        return any(
            self._policy.exemption.covers(tracee.names(each)) for each in self._ancestry(pid)
        )

    def _may_be_confined(self, tid: int, pid: int) -> bool:
        """Tell whether a thread may have confined itself, or come of one that has.

        Who it comes of, nobody can tell for sure: orphans are adopted, and clone(2) has
        CLONE_PARENT. But that was no earlier than it began, and no_new_privs is handed down.
        """
        if pid in self._confined:
            return True
        if self._lanes.confined_all_with_no_new_privs and not tracee.has_no_new_privs(tid):
            return False
        began = tracee.start_of(pid)
        return began is None or began >= self._lanes.confined_since

    def _ancestry(self, pid: int) -> Iterator[int]:
        """Return a process, its parent and so on, up to the command or to where nothing is."""
        command = self._confined.command
        for _ in range(_GENERATIONS):
            yield pid
            if pid in (command, 0, 1):
                return
            pid = tracee.parent_of(pid)


def _now_in_ticks() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


_PROCESSES_MAX = 1009
_MARKS = 1 << 40
"""About how far into files marks are: large filesystems have such offsets, programs do not."""
_GENERATIONS = 101


def as_event(record: tuple[object, ...], descriptor: int | None) -> OpenEvent:
    """Return the event of a record that begins with EVENT."""
    event = OpenEvent(*record[1:])  # type: ignore[arg-type]
    return event if descriptor is None else event._replace(fd=descriptor)
