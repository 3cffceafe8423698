"""Attaching to a program that runs already, and leaving it as it was.

Nothing is injected: every system call of the program stops twice, and most are let go at
once. That is slow, and it can be undone at any moment.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from flagshim import tracee
from flagshim.credentials import has_capabilities
from flagshim.engines.opens import refuse
from flagshim.engines.policy import Policy
from flagshim.engines.registers import NUMBER, RESULT
from flagshim.engines.restarts import result_to_restart
from flagshim.engines.roster import Roster
from flagshim.engines.seizing import seize_process
from flagshim.engines.sink import Sink
from flagshim.engines.stops import Stops
from flagshim.engines.threads import Thread
from flagshim.engines.tracer import SYSCALL_STOP, Tracer
from flagshim.errors import FlagshimError
from flagshim.linux.ptrace import (
    PTRACE_EVENT_STOP,
    SYSCALL_ENTRY,
    WAIT_TRACEES,
    peek_user,
    ptrace_cont,
    ptrace_detach,
    ptrace_entry_info,
    ptrace_interrupt,
    ptrace_poke_user,
    ptrace_syscall,
)
from flagshim.seccomp import traced_calls
from flagshim.syscalls import X32_BIT

YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_LEAVE_ON = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_SYS_PTRACE = 19  # capabilities(7)
_LEAVE_SECONDS = 1.0
"""How long we wait, at most, for the next thread to stop when we leave."""


class Target(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    uid: int
    argv: list[str]


def find_target(pid: int, may_be_traced: bool = False) -> Target:
    """Look at a process that is to be attached to.

    Args:
        pid: its ID.
        may_be_traced: whether another tracer is no hindrance.

    Raises:
        FlagshimError: there is none, or it is one that cannot be traced, and why.
    """
    try:
        with open(f"/proc/{pid}/status", errors="surrogateescape") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            cmdline = stream.read()
    except OSError:
        raise FlagshimError(f"no process {pid}", "see ps -e") from None
    name = status["Name"]
    if int(status["Tgid"]) != pid:
        raise FlagshimError(f"{pid} is a thread of {status['Tgid']}", "attach to the process")
    if status["State"].startswith("Z") and int(status["Threads"]) <= 1:
        raise FlagshimError(f"process {pid} ({name}) has ended", "nothing is left to attach to")
    if not cmdline:
        raise FlagshimError(f"{pid} ({name}) is a kernel thread", "only programs can be traced")
    if pid == os.getpid():
        raise FlagshimError(f"{pid} is flagshim itself", "name another process")
    tracer = int(status["TracerPid"])
    if tracer and not may_be_traced:
        by = os.fsdecode(tracee.comm(tracer))
        raise FlagshimError(
            f"process {pid} ({name}) is traced already, by {by} (PID {tracer})",
            "end that first: a process has one tracer",
        )
    uid = int(status["Uid"].split()[0])
    return Target(
        pid, uid, [os.fsdecode(word) for word in cmdline.removesuffix(b"\0").split(b"\0")]
    )


def seize_target(target: Target, options: int, seized: Callable[[int], None]) -> None:
    """Seize all threads of a process.

    Args:
        target: the process.
        options: PTRACE_O_*.
        seized: called with each thread.

    Raises:
        FlagshimError: it cannot be traced, and why; or it has ended.
    """
    found = False

    def take(tid: int) -> None:
        nonlocal found
        found = True
        seized(tid)

    try:
        seize_process(target.pid, options, take)
    except OSError:
        raise refusal_of(target) from None
    if not found:
        raise FlagshimError(f"process {target.pid} ended meanwhile", "see ps -e")


def refusal_of(target: Target) -> FlagshimError:
    """Name the reason why the kernel does not let us trace a process (ptrace(2), EPERM)."""
    what = f"cannot trace process {target.pid}"
    if os.geteuid() not in (0, target.uid):
        return FlagshimError(f"{what}: it belongs to user {target.uid}", "run flagshim as root")
    try:
        with open(YAMA) as file:
            scope = int(file.read())
    except OSError:
        scope = 0
    if scope >= (3 if os.geteuid() == 0 else 1):
        return FlagshimError(
            f"{what}: Yama allows only a parent to trace (ptrace_scope {scope})",
            "run flagshim as root, or start the program with flagshim run",
        )
    if _in_user_namespace():
        return FlagshimError(
            f"{what}: flagshim is in a container, a user namespace that the process is not of",
            "run flagshim as root outside the container",
        )
    if os.geteuid() == 0 and not has_capabilities(_SYS_PTRACE):
        return FlagshimError(
            f"{what}: flagshim's root has no CAP_SYS_PTRACE, as in a container",
            "give the container that capability (--cap-add SYS_PTRACE), or run flagshim outside",
        )
    return FlagshimError(
        f"{what}: the kernel refuses it (a privileged program, or a security module)",
        "run flagshim as root; see flagshim doctor",
    )


def _in_user_namespace() -> bool:
    """Tell whether our user IDs are not all the machine's, user_namespaces(7)."""
    with contextlib.suppress(OSError), open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]
    return False


class AttachEngine(Tracer):
    """Serves one running process, its threads, and from then on its children."""

    name = "ptrace attach"

    def __init__(self, policy: Policy, sink: Sink) -> None:
        super().__init__(policy, sink, Roster(), follows_standing=True)
        self._options = policy.options
        self._calls = traced_calls()
        self._leave_at: float | None = None
        self._awaited: set[int] = set()
        self._ready: Callable[[], None] | None = None
        self.left = False
        """Whether the program was left, and has not ended."""

    def run(
        self, target: Target, seconds: float | None, stops: Stops, ready: Callable[[], None]
    ) -> None:
        """Serve a process until it ends, a signal tells us to leave it, or time is up.

        Args:
            target: the process.
            seconds: how long; None for as long as it lives.
            stops: where stops and signals come from.
            ready: called once, when every call it makes from then on is served.

        Raises:
            FlagshimError: it cannot be traced.
        """
        self._ready = ready
        self._leave_at = None if seconds is None else time.monotonic() + seconds
        seize_target(target, self._options, self._seized)
        self.loop(stops)
        if self.left:
            self._leave()

    # --- attaching ----------------------------------------------------------------------

    def _seized(self, tid: int) -> None:
        if tid not in self.threads:
            self.add(tid)
        self._awaited.add(tid)  # seized it runs on, until it stops for the first time
        with contextlib.suppress(ProcessLookupError):
            ptrace_interrupt(tid)

    # --- serving ------------------------------------------------------------------------

    def dispatch(self, tid: int, status: int) -> None:
        """Answer one stop or end."""
        self._awaited.discard(tid)
        super().dispatch(tid, status)

    def resume(self, tid: int, number: int = 0) -> None:
        """Let a thread run to its next system call, or its return from one."""
        ptrace_syscall(tid, number)

    def seccomp_stop(self, thread: Thread) -> None:
        """Answer a stop that a filter asked for, right behind the syscall-entry stop."""
        if self.handler.kind_of_stop(ptrace_entry_info(thread.tid)) is None:
            refuse(thread.tid)
        self.resume(thread.tid)

    def syscall_stop(self, thread: Thread) -> None:
        """Answer a syscall-entry or syscall-exit stop."""
        if thread.in_call:
            super().syscall_stop(thread)
            return
        info = ptrace_entry_info(thread.tid)
        if info[0] == SYSCALL_ENTRY:
            kind = self._calls.get((info[1], info[4] & ~X32_BIT))
            if kind is not None:
                self.handler.entered_call(thread, kind, info)
        self.resume(thread.tid)

    def interrupted(self, thread: Thread) -> None:
        """Have a call that our interrupt cut short made again."""
        result = peek_user(thread.tid, RESULT)
        restart = result_to_restart(result, peek_user(thread.tid, NUMBER))
        if restart != result:
            ptrace_poke_user(thread.tid, RESULT, restart)

    def signalled(self, info: signal.struct_siginfo) -> None:
        """Leave when told to, by whomever."""
        if info.si_signo in _LEAVE_ON:
            self.left = True

    def attend(self) -> bool:
        """Look at the clock, and whether everybody has stopped once."""
        if self._ready is not None and not any(map(tracee.is_interruptible, self._awaited)):
            self._ready()
            self._ready = None
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.left = True
        return self._leave_at is not None or self._ready is not None

    def finished(self) -> bool:
        """Tell whether to leave."""
        return self.left

    # --- leaving ------------------------------------------------------------------------

    def _leave(self) -> None:
        """Detach from every thread, each where nothing of ours is left in it.

        Only at the stop of PTRACE_INTERRUPT, or for a signal: there the kernel still restarts
        an interrupted call. At a syscall stop it would let -ERESTARTSYS through to the program.
        """
        for tid in list(self.threads):
            try:
                ptrace_interrupt(tid)
            except ProcessLookupError:
                continue
        patience = time.monotonic() + _LEAVE_SECONDS
        while self.threads:
            try:
                tid, status = os.waitpid(-1, WAIT_TRACEES | os.WNOHANG)
            except ChildProcessError:
                return
            if not tid:
                if time.monotonic() > patience:
                    return  # in a vfork, or waiting for a disk: the kernel detaches when we end
                time.sleep(_LEAVE_SECONDS / 1009)
                continue
            patience = time.monotonic() + _LEAVE_SECONDS
            if not os.WIFSTOPPED(status):
                self.dispatch(tid, status)
                continue
            thread = self.threads.get(tid)
            if thread is None:  # a child that came while we were leaving
                thread = self.add(tid)
            try:
                self._leave_thread(thread, status)
            except ProcessLookupError:
                continue

    def _leave_thread(self, thread: Thread, status: int) -> None:
        tid, event, stop = thread.tid, status >> 16, os.WSTOPSIG(status)
        if event == PTRACE_EVENT_STOP:
            self.interrupted(thread)
            self._forget(thread)
            ptrace_detach(tid)
            return
        if not event and stop != SYSCALL_STOP:
            self._forget(thread)
            ptrace_detach(tid, stop)
            return
        if stop == SYSCALL_STOP:
            finished = self.handler.exited(thread)
            if finished is not None:
                self.sink.record(finished)
        ptrace_interrupt(tid)  # once more: any stop takes a pending one away
        ptrace_cont(tid)

    def _forget(self, thread: Thread) -> None:
        if thread.put_back is not None:
            thread.put_back()
        self.remove(thread.tid)
        self.handler.gone(thread)
