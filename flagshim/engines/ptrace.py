"""The ptrace engine: a program we start, or become, with a filter that stops only some calls."""

import os
import signal
from collections.abc import Sequence

from flagshim import descriptors
from flagshim.engines.command import Command
from flagshim.engines.forwarding import FORWARDED, Forwarding
from flagshim.engines.launch import start
from flagshim.engines.sink import Sink
from flagshim.engines.stops import TERMINAL_STOPS, Stops
from flagshim.engines.threads import Thread
from flagshim.engines.tracer import Tracer
from flagshim.linux import ptrace_signal_sender
from flagshim.openflags import bits_of
from flagshim.rules import MACHINE, Rule, flag_bits
from flagshim.seccomp import build_filter


def filter_for(rules: Sequence[Rule]) -> bytes:
    """Return the seccomp filter that a command under this engine needs."""
    return build_filter(flag_bits(rules), bits_of("O_PATH", MACHINE))


class PtraceEngine(Tracer):
    """Runs one command and everything it starts under ptrace."""

    name = "ptrace"

    def __init__(self, rules: Sequence[Rule], sink: Sink) -> None:
        super().__init__(rules, sink)
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
        self.threads[pid] = Thread(pid)
        self.loop(stops)

    # --- what differs from any tracer ---------------------------------------------------

    def attend(self) -> bool:
        """Pass on signals that are due, and stop if all tracees have."""
        if self._stop_asked:
            self._stop_with_tracees()
        for number in self._forwarding.due():
            self._forward(number)
        return bool(self._forwarding.waiting)

    def ended(self, tid: int, status: int) -> None:
        """Keep the wait status of the command itself."""
        if tid == self._child_pid:
            self._child_status = status

    def signal_stop(self, tid: int, number: int) -> None:
        """Deliver a signal, and remember whose it is if it might be one to pass on."""
        if number in FORWARDED and os.path.exists(f"/proc/{self._child_pid}/task/{tid}"):
            self._forwarding.delivered(number, ptrace_signal_sender(tid))
        self.resume(tid, number)

    def signalled(self, info: signal.struct_siginfo) -> None:
        """Pass a signal on, or stop as our tracees do."""
        if not self._relays:
            return
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
        for tid in self.threads:
            try:
                os.kill(tid, number)
            except OSError:
                continue

    def _stop_with_tracees(self) -> None:
        """Stop when all tracees have, so that the shell sees its job stopped.

        Not before: a program that handles SIGTSTP needs us until it stops of itself.
        """
        if self.threads and all(thread.stopped for thread in self.threads.values()):
            self._stop_asked = False
            os.kill(os.getpid(), signal.SIGSTOP)
