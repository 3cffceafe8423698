"""The tracer: a loop that answers the stops of threads, whoever started them.

Wait for all stops at hand, answer each, sleep when there are none. What a call means is
opens.py's; here are only the ways a process can start, stop, multiply, become another and
end. ptrace.py and attach.py say how it begins, and what stops they ask for.
"""

import contextlib
import os
import signal

from flagshim import tracee
from flagshim.engines.opens import OpenHandler
from flagshim.engines.policy import Fate, Policy
from flagshim.engines.roster import Roster
from flagshim.engines.sink import Sink
from flagshim.engines.stops import Stops
from flagshim.engines.threads import Thread
from flagshim.linux.ptrace import (
    PTRACE_EVENT_CLONE,
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_EXIT,
    PTRACE_EVENT_FORK,
    PTRACE_EVENT_SECCOMP,
    PTRACE_EVENT_STOP,
    PTRACE_EVENT_VFORK,
    ptrace_cont,
    ptrace_detach,
    ptrace_event_message,
    ptrace_listen,
    ptrace_syscall,
)
from flagshim.trace.events import text_or_bytes

_GROUP_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_MULTIPLIED = frozenset({PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK, PTRACE_EVENT_CLONE})
SYSCALL_STOP = signal.SIGTRAP | 0x80  # PTRACE_O_TRACESYSGOOD
_RETRY_SECONDS = 0.05


class Tracer:
    """Answers stops until no tracee is left. Subclasses override what is not underscored."""

    def __init__(self, policy: Policy, sink: Sink, roster: Roster, follows_standing: bool) -> None:
        """Trace nobody yet.

        Args:
            policy: what to do with programs.
            sink: where events go.
            roster: of the tracees, to be kept.
            follows_standing: whether calls of Kind.STANDING stop.
        """
        self.sink = sink
        self.handler = OpenHandler(policy.rules, sink, follows_standing)
        self.threads: dict[int, Thread] = {}
        self.roster = roster
        self._exemption = policy.exemption
        self._has_guard = policy.fate is Fate.CONTINUE

    def add(self, tid: int) -> Thread:
        """Take in a thread that is traced from now on, nothing being known of it."""
        thread = self.threads[tid] = Thread(tid)
        self.roster.add(tid)
        return thread

    def remove(self, tid: int) -> Thread | None:
        """Forget a thread that is not traced any more."""
        self.roster.remove(tid)
        return self.threads.pop(tid, None)

    def loop(self, stops: Stops) -> None:
        """Serve the threads in `threads` and all that come of them until they have ended."""
        while True:
            try:
                found = stops.ready(len(self.threads))
            except ChildProcessError:
                return
            for tid, status in found:
                self.dispatch(tid, status)
            if found:
                self.sink.flush_if_due()
            attend_again = self.attend()
            if self.finished():
                return
            if found:
                info = stops.glance()
            elif self.sink.flush() and not attend_again:
                info = stops.sleep(None)
            else:
                info = stops.sleep(_RETRY_SECONDS)
            if info is not None and info.si_signo != signal.SIGCHLD:
                self.signalled(info)

    # --- for subclasses ---------------------------------------------------------------

    def attend(self) -> bool:
        """Do what is due between stops; True asks to be called again within moments."""
        return False

    def interrupted(self, thread: Thread) -> None:
        """Look at a thread that stopped for no other reason than that we asked it to."""

    def finished(self) -> bool:
        """Tell whether to end although tracees are left."""
        return False

    def signalled(self, info: signal.struct_siginfo) -> None:
        """Handle a signal sent to us."""

    def ended(self, tid: int, status: int) -> None:
        """Take note of the end of a thread, with its wait status."""

    def may_go(self, tid: int) -> bool:
        """Tell whether to let go of a thread that is about to end."""
        return True

    def signal_stop(self, tid: int, number: int) -> None:
        """Answer a stop for the delivery of a signal."""
        self.resume(tid, number)

    def seccomp_stop(self, thread: Thread) -> None:
        """Answer a stop at the beginning of a call that a filter asked for."""
        if self.handler.entered(thread):
            ptrace_syscall(thread.tid)
        else:
            self.resume(thread.tid)

    def syscall_stop(self, thread: Thread) -> None:
        """Answer a syscall-exit stop, the only kind that is asked for here."""
        event = self.handler.exited(thread)
        try:
            self.resume(thread.tid)
        finally:
            if event is not None:
                self.sink.record(event)

    def resume(self, tid: int, number: int = 0) -> None:
        """Let a thread run to the next stop that is of interest, delivering a signal."""
        ptrace_cont(tid, number)

    # --- stops ------------------------------------------------------------------------

    def dispatch(self, tid: int, status: int) -> None:
        """Answer one stop or end. A thread may be killed at any point of it."""
        if not os.WIFSTOPPED(status):
            self._gone(tid, status)
            return
        event = status >> 16
        stop = os.WSTOPSIG(status)
        try:
            thread = self.threads.get(tid)
            if thread is None:  # a child's first stop often comes before its parent's event
                thread = self.add(tid)
            if event == PTRACE_EVENT_SECCOMP:
                self.seccomp_stop(thread)
            elif event == PTRACE_EVENT_STOP and stop in _GROUP_STOPS:
                thread.stopped = True
                ptrace_listen(tid)
            elif event == PTRACE_EVENT_EXEC:
                self._execed(thread)
            elif event == PTRACE_EVENT_EXIT and self.may_go(tid):
                self._exiting(tid)
            elif event:
                thread.stopped = False
                if event == PTRACE_EVENT_STOP:
                    self.interrupted(thread)
                elif event in _MULTIPLIED and self._has_guard:
                    self._multiplied(thread)
                if thread.in_call:  # a new child, say; the call itself has not returned
                    ptrace_syscall(tid)
                else:
                    self.resume(tid)
            elif stop == SYSCALL_STOP:
                self.syscall_stop(thread)
            else:
                self.signal_stop(tid, stop)
        except ProcessLookupError:
            self._let_go(tid)  # killed, most likely: then its end will be reported
        except Exception as error:  # whatever it is, it must not cost the program its life
            self.sink.blind_spot(f"error in flagshim, {type(error).__name__}: {error}", b"?")
            self._let_go(tid)

    def _let_go(self, tid: int) -> None:
        with contextlib.suppress(OSError):
            self.resume(tid)

    def _multiplied(self, thread: Thread) -> None:
        """Note a new tracee before who made it goes on, and perhaps ends.

        A guard that finds neither would serve nobody. The new one may have had its first stop
        already, and its last.
        """
        tid = ptrace_event_message(thread.tid)
        if tid and tid not in self.threads and tracee.tracer_of(tid) == os.getpid():
            self.roster.add(tid)

    def _execed(self, thread: Thread) -> None:
        """Handle exec, which a thread other than the leader comes out of as the leader.

        It then has the leader's ID, and its former one never reports an end (ptrace(2)).
        """
        tid = thread.tid
        former = self.threads.get(ptrace_event_message(tid), thread)
        for gone in (thread, former):
            self.handler.gone(gone)
        self.handler.process_gone(tid)
        exempt = self._exemption.programs and self._exemption.covers(tracee.names(tid))
        if exempt:
            self.sink.blind_spot("exempt", text_or_bytes(tracee.program_name(tid)))
            self.remove(tid)
        else:
            self.add(tid)  # before the former goes: a guard that finds neither would serve nobody
        if former is not thread:
            self.remove(former.tid)
        if exempt:
            ptrace_detach(tid)
        else:
            self.resume(tid)

    def _exiting(self, tid: int) -> None:
        """Let go of a thread right before it ends, so that its parent hears of that at once.

        Of a tracee a parent with a pidfd hears when we do, and could not reap it until we have:
        waitpid(WNOHANG) right after it would find nothing, as it never does without a tracer.
        do_notify_parent() in kernel/signal.c, wait_consider_task() in kernel/exit.c.
        """
        # Before it goes: a thread that execs may take its ID over at once.
        self._gone(tid, ptrace_event_message(tid))
        ptrace_detach(tid)

    def _gone(self, tid: int, status: int) -> None:
        thread = self.remove(tid)
        if thread is not None:
            self.handler.gone(thread)
            self.handler.process_gone(tid)
        self.ended(tid, status)
