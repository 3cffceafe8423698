"""The ptrace engine: seccomp stops the calls of interest, ptrace(2) has them changed.

The loop is: wait for all stops at hand, answer each, sleep when there are none. What a
call means is opens.py's; here are only the ways a process can start, stop, multiply, become
another and end.
"""

import os
import signal
from collections.abc import Sequence

from flagshim import descriptors
from flagshim.engines.command import Command
from flagshim.engines.forwarding import FORWARDED, Forwarding
from flagshim.engines.launch import start
from flagshim.engines.opens import OpenHandler
from flagshim.engines.sink import Sink
from flagshim.engines.stops import TERMINAL_STOPS, Stops
from flagshim.engines.threads import Thread
from flagshim.linux import (
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_SECCOMP,
    PTRACE_EVENT_STOP,
    ptrace_cont,
    ptrace_event_message,
    ptrace_listen,
    ptrace_signal_sender,
    ptrace_syscall,
)
from flagshim.openflags import bits_of
from flagshim.rules import MACHINE, Rule, flag_bits
from flagshim.seccomp import build_filter

_SYSCALL_STOP = signal.SIGTRAP | 0x80  # PTRACE_O_TRACESYSGOOD
_GROUP_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_RETRY_SECONDS = 0.05


def filter_for(rules: Sequence[Rule]) -> bytes:
    """Return the seccomp filter that a command under this engine needs."""
    return build_filter(flag_bits(rules), bits_of("O_PATH", MACHINE))


class PtraceEngine:
    """Runs one command and everything it starts under ptrace."""

    name = "ptrace"

    def __init__(self, rules: Sequence[Rule], sink: Sink) -> None:
        self._sink = sink
        self._handler = OpenHandler(rules, sink)
        self._threads: dict[int, Thread] = {}
        self._child_pid = 0
        self._child_status = 0
        self._relays = False
        self._stop_asked = False
        self._forwarding = Forwarding()

    def run(self, command: Command, inherited: Sequence[int]) -> int:
        """Run a command as our child until it and everything it started have ended.

        Signals sent to us are passed on to it.

        Args:
            command: with a filter of `filter_for`.
            inherited: descriptors above 2 that are the command's alone once it is started.

        Returns:
            The wait status of the command itself, as waitpid(2) gives it.

        Raises:
            FlagshimError: it could not be started.
        """
        self._relays = True
        with Stops() as stops:
            child = start(command)
            child.release()
            descriptors.blank(0, 1)  # stderr is for our last line
            descriptors.close(inherited)
            self._supervise(child.pid, stops)
        reason = child.not_started()
        if reason is not None:
            raise command.failure(reason)
        return self._child_status

    def serve(self, pid: int) -> int:
        """Serve a process, seized already, that is not our child, until it and its kind end.

        Returns:
            Its wait status.
        """
        with Stops() as stops:
            self._supervise(pid, stops)
        return self._child_status

    def _supervise(self, pid: int, stops: Stops) -> None:
        self._child_pid = pid
        self._threads[pid] = Thread(pid)
        self._loop(stops)

    # --- the loop ---------------------------------------------------------------------

    def _loop(self, stops: Stops) -> None:
        while True:
            try:
                found = stops.ready()
            except ChildProcessError:
                return
            for tid, status in found:
                self._dispatch(tid, status)
            if found:
                self._sink.flush_if_due()
                if self._stop_asked:
                    self._stop_with_tracees()
                timeout: float | None = 0
            elif not self._threads and not self._adopt_unheard_of():
                return
            else:
                timeout = None if self._sink.flush() else _RETRY_SECONDS
            if self._forwarding.waiting:
                for number in self._forwarding.due():
                    self._forward(number)
                timeout = _RETRY_SECONDS if timeout is None else timeout
            info = stops.sleep(timeout)
            if info is not None and info.si_signo != signal.SIGCHLD and self._relays:
                self._signalled(info)

    def _dispatch(self, tid: int, status: int) -> None:
        """Answer one stop or end. A thread may be killed at any point of it."""
        if not os.WIFSTOPPED(status):
            self._gone(tid, status)
            return
        thread = self._threads.get(tid)
        if thread is None:  # a child's first stop often comes before its parent's event
            thread = self._threads[tid] = Thread(tid)
        event = status >> 16
        stop = os.WSTOPSIG(status)
        try:
            if event == PTRACE_EVENT_SECCOMP:
                if self._handler.entered(thread):
                    ptrace_syscall(tid)
                else:
                    ptrace_cont(tid)
            elif event == PTRACE_EVENT_STOP and stop in _GROUP_STOPS:
                thread.stopped = True
                ptrace_listen(tid)
            elif event == PTRACE_EVENT_EXEC:
                self._execed(thread)
                ptrace_cont(tid)
            elif event:
                thread.stopped = False
                ptrace_cont(tid)
            elif stop == _SYSCALL_STOP:
                self._returned(thread)
            else:
                if stop in FORWARDED and os.path.exists(f"/proc/{self._child_pid}/task/{tid}"):
                    self._forwarding.delivered(stop, ptrace_signal_sender(tid))
                ptrace_cont(tid, stop)
        except ProcessLookupError:
            pass  # killed: its end will be reported

    def _returned(self, thread: Thread) -> None:
        event = self._handler.exited(thread, thread.call) if thread.call is not None else None
        ptrace_cont(thread.tid)
        if event is not None:
            self._sink.record(event)

    def _execed(self, thread: Thread) -> None:
        """Handle exec, which a thread other than the leader comes out of as the leader.

        It then has the leader's ID, and its former one never reports an end (ptrace(2)).
        """
        former = self._threads.pop(ptrace_event_message(thread.tid), thread)
        for gone in (thread, former):
            self._handler.gone(gone)
        self._handler.process_gone(thread.tid)
        self._threads[thread.tid] = Thread(thread.tid)

    def _gone(self, tid: int, status: int) -> None:
        thread = self._threads.pop(tid, None)
        if thread is not None:
            self._handler.gone(thread)
            self._handler.process_gone(tid)
        if tid == self._child_pid:
            self._child_status = status

    def _adopt_unheard_of(self) -> bool:
        """Find tracees whose parents were killed before they could tell of them.

        Only asked when no tracee is known: what is left may also be children that are not
        tracees at all.
        """
        mark = f"\nTracerPid:\t{os.getpid()}\n"
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                try:
                    with open(f"/proc/{entry}/status", errors="replace") as file:
                        if mark in file.read():
                            self._threads[int(entry)] = Thread(int(entry))
                except OSError:
                    continue
        return bool(self._threads)

    # --- signals to the supervisor ----------------------------------------------------

    def _signalled(self, info: signal.struct_siginfo) -> None:
        number = signal.Signals(info.si_signo)
        if number in TERMINAL_STOPS:
            self._stop_asked = True
            self._stop_with_tracees()
        elif number == signal.SIGCONT:
            self._stop_asked = False
        elif info.si_code <= 0:  # what the terminal sends, CMD gets from there (sigaction(2))
            self._forwarding.arrived(number, info.si_pid)

    def _forward(self, number: signal.Signals) -> None:
        try:
            os.kill(self._child_pid, number)
        except ProcessLookupError:
            self._to_survivors(number)

    def _to_survivors(self, number: signal.Signals) -> None:
        """Pass a signal to what CMD left running, once CMD itself has ended."""
        for tid in self._threads:
            try:
                os.kill(tid, number)
            except OSError:
                continue

    def _stop_with_tracees(self) -> None:
        """Stop when all tracees have, so that the shell sees its job stopped.

        Not before: a program that handles SIGTSTP needs us until it stops of itself.
        """
        if self._threads and all(thread.stopped for thread in self._threads.values()):
            self._stop_asked = False
            os.kill(os.getpid(), signal.SIGSTOP)
