"""The ptrace engine: a program we start, or become, with a filter that stops only some calls."""

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence

from flagshim import descriptors
from flagshim.engines.command import Command
from flagshim.engines.forwarding import FORWARDED
from flagshim.engines.lastwords import LastWords
from flagshim.engines.launch import start
from flagshim.engines.policy import Policy
from flagshim.engines.relay import Relay
from flagshim.engines.roster import Roster
from flagshim.engines.sink import Sink
from flagshim.engines.stops import Stops
from flagshim.engines.threads import Thread
from flagshim.engines.tracer import Tracer
from flagshim.linux.ptrace import ptrace_signal_sender
from flagshim.openflags import bits_of
from flagshim.rules import MACHINE, flag_bits
from flagshim.seccomp import build_filter
from flagshim.tracee import thread_group

_LOOK_SECONDS = 0.05


def filter_for(policy: Policy) -> bytes:
    """Return the seccomp filter that a command under this engine needs."""
    return build_filter(flag_bits(policy.rules), bits_of("O_PATH", MACHINE), policy.leaves)


class PtraceEngine(Tracer):
    """Runs one command and everything it starts under ptrace."""

    name = "ptrace"

    def __init__(self, policy: Policy, sink: Sink, roster: Roster) -> None:
        super().__init__(policy, sink, roster, follows_standing=not policy.leaves)
        self._options = policy.options
        self._relay: Relay | None = None
        self._last_words = LastWords()

    def run(self, command: Command, inherited: Sequence[int], stops: Stops) -> int:
        """Run a command as our child until it and everything it started have ended.

        Signals sent to us are passed on to it.

        Args:
            command: with a filter of `filter_for`.
            inherited: descriptors above 2 that are the command's alone once it is started.
            stops: made after `command`, which knows what was blocked before.

        Returns:
            The wait status of the command itself, as waitpid(2) gives it.

        Raises:
            FlagshimError: it could not be started.
        """
        self._relay = Relay(self._recipients, self._has_stopped)
        child = start(command, self._options)
        self.roster.command_started(child.pid)
        self.add(child.pid)
        child.release()
        descriptors.blank(0, 1)  # stderr is for our last line
        descriptors.close(inherited)
        self.loop(stops)
        self._wait_if_exempt(stops, self._relay)
        reason = child.not_started()
        if reason is not None:
            raise command.failure(reason)
        return self.roster.status

    def serve(self, pid: int, tids: Iterable[int], stops: Stops) -> int | None:
        """Serve a process that is not our child until it and its kind end.

        Args:
            pid: the process.
            tids: its threads, seized already.
            stops: where they stop.

        Returns:
            Its wait status; None if it became a program that is exempt.
        """
        self.roster.command_started(pid)
        return self.go_on(tids, stops)

    def go_on(self, tids: Iterable[int], stops: Stops) -> int | None:
        """Serve threads, seized already, that another supervisor served before.

        Returns:
            The wait status of the command, which the roster knows; None if nobody does.
        """
        for tid in tids:
            self.add(tid)
        self.loop(stops)
        return None if self.roster.command else self.roster.status

    def _wait_if_exempt(self, stops: Stops, relay: Relay) -> None:
        """Wait for the command if it goes on although we trace nobody any more."""
        while self.roster.command:
            pid, status = os.waitpid(self.roster.command, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                relay.stop()
                continue
            if pid:
                self.ended(pid, status)
                return
            info = stops.sleep(_LOOK_SECONDS if relay.attend() else None)
            if info is not None and info.si_signo != signal.SIGCHLD:
                relay.signalled(info)

    # --- what differs from any tracer ---------------------------------------------------

    def attend(self) -> bool:
        """Pass on signals that are due, and stop if CMD has."""
        return self._relay is not None and self._relay.attend()

    def add(self, tid: int) -> Thread:
        """Take in a thread; one with the ID of the command is its leader, perhaps by exec."""
        if tid == self.roster.command:
            self._last_words = LastWords()
        self._last_words.began(tid)
        return super().add(tid)

    def may_go(self, tid: int) -> bool:
        """Tell whether to let go of a thread that is about to end: not of our own child."""
        return self._relay is None or tid != self.roster.command

    def ended(self, tid: int, status: int) -> None:
        """Keep the wait status of the command itself."""
        command = self.roster.command
        if not command:
            return
        if self._relay is not None:  # our child: waitpid(2) has told us
            if tid == command:
                self.roster.command_ended(status)
            return
        found = self._last_words.of_process(command, tid, status)
        if found is not None:
            self.roster.command_ended(found)

    def signal_stop(self, tid: int, number: int) -> None:
        """Deliver a signal, and remember whose it is if it might be one to pass on."""
        if self._relay and number in FORWARDED and tid in self._command_threads():
            self._relay.delivered(number, ptrace_signal_sender(tid))
        self.resume(tid, number)

    def signalled(self, info: signal.struct_siginfo) -> None:
        """Pass a signal on, or stop as CMD does."""
        if self._relay is not None:
            self._relay.signalled(info)

    def _recipients(self) -> set[int]:
        """Return CMD, or what it left running if it has ended.

        A tracee's ID is its own until we have been told of its end.
        """
        command = self.roster.command
        return {command} if command else self._survivors()

    def _survivors(self) -> set[int]:
        found = set()
        for tid in self.threads:
            with contextlib.suppress(OSError):
                found.add(thread_group(tid))
        return found

    def _command_threads(self) -> set[int]:
        try:
            return {int(name) for name in os.listdir(f"/proc/{self.roster.command or None}/task")}
        except OSError:
            return set()

    def _has_stopped(self) -> bool:
        tids = self._command_threads()
        return bool(tids) and all(tid in self.threads and self.threads[tid].stopped for tid in tids)
