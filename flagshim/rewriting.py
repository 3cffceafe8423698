"""Sessions of the bpf engine: flags taken off inside the kernel."""

import contextlib
import os
import shutil
from collections.abc import Sequence

from flagshim import descriptors, tracee
from flagshim.engines.attach import find_target
from flagshim.engines.bpf.libc import blind_spots, libc_of_command, libc_of_process
from flagshim.engines.bpf.program import can_write_registers
from flagshim.engines.bpf.pump import Pump
from flagshim.engines.bpf.rewriter import Rewriter, why_not
from flagshim.engines.bpf.translation import Translator
from flagshim.engines.bpf.waiting import wait_for_child, wait_until_told
from flagshim.engines.command import User, command_for
from flagshim.engines.launch import fork_waiting
from flagshim.engines.policy import Policy
from flagshim.engines.stops import Stops
from flagshim.errors import FlagshimError
from flagshim.posts import Supervision
from flagshim.saying import say, say_in_passing
from flagshim.session import (
    Outcome,
    begin,
    check_command,
    outcome_of,
    say_served,
    uid_of,
)
from flagshim.trace.writer import TraceWriter


def engine_for(policy: Policy) -> str:
    """Return what --engine auto means here: "bpf" where it can do as asked, else "ptrace"."""
    if _why_not(policy) is not None:
        return "ptrace"
    try:
        return "bpf" if can_write_registers() else "ptrace"
    except FlagshimError:
        return "ptrace"


def attach_bpf(pid: int, how: Supervision, seconds: float | None) -> Outcome:
    """Serve a running process until it ends, a signal tells us to leave it, or time is up.

    Args:
        pid: the process; all its threads, and from then on its children, are served.
        how: rules and trace.
        seconds: how long; None for as long as it lives.

    Raises:
        FlagshimError: it cannot be done here, not for this process, or the trace is unusable.
    """
    _check(how.policy)
    target = find_target(pid, may_be_traced=True)
    libc = libc_of_process(pid)
    with Rewriter(how.policy.rules) as rewriter:
        stops = Stops()
        session = begin(target.argv, how, Rewriter.name, target.uid)
        writer = TraceWriter(session, say_in_passing, how.keep)
        try:
            _warn(f"/proc/{pid}/exe", f"PID {pid}", pid)
            rewriter.watch(pid)
            rewriter.start(writer.keeper_pid)
            rewriter.reach(pid, libc)
        except FlagshimError:
            writer.close(None, began=False)
            raise
        say_served(pid, seconds)
        pump = Pump(rewriter, Translator(how.policy.rules), writer)
        wait_until_told(pump, stops, seconds, rewriter.any_alive)
        rewriter.release()
        pump.finish()
    writer.close(None)
    return outcome_of(0, writer, session)


def run_bpf(argv: Sequence[str], how: Supervision, user: User | None = None) -> Outcome:
    """Run a command, served from its first instruction, until it and all it started have ended.

    Args:
        argv: the command, found through PATH.
        how: rules and trace.
        user: whom to run the command as; None for ourselves.

    Raises:
        FlagshimError: it cannot be done here, CMD or the trace is unusable; CMD has not run then.
    """
    check_command(argv[0])
    _check(how.policy)
    command = command_for(argv, None, user)
    program = _found(argv[0])
    libc = libc_of_command(program, command.environment)
    handed_on = descriptors.inherited()
    child = fork_waiting(command)  # before the mount namespace that tracefs may need
    try:
        rewriter = Rewriter(how.policy.rules)
    except FlagshimError:
        child.give_up()
        raise
    with rewriter:
        stops = Stops()
        session = begin(argv, how, Rewriter.name, uid_of(user))
        writer = TraceWriter(session, say_in_passing, how.keep)
        try:
            _warn(program, argv[0])
            rewriter.watch(child.pid)
            rewriter.start(writer.keeper_pid)
            rewriter.reach(child.pid, libc)
        except FlagshimError:
            child.give_up()
            writer.close(None, began=False)
            raise
        child.release()
        descriptors.blank(0, 1)
        descriptors.close(handed_on)
        pump = Pump(rewriter, Translator(how.policy.rules), writer)
        status = wait_for_child(child.pid, pump, stops)
        rewriter.release()
        pump.finish()
    reason = child.not_started()
    if reason is not None:
        writer.close(None, began=False)
        raise command.failure(reason)
    exit_status = os.waitstatus_to_exitcode(status)
    writer.close(exit_status)
    return outcome_of(exit_status, writer, session)


def _check(policy: Policy) -> None:
    reason = _why_not(policy)
    if reason is not None:
        raise reason


def _why_not(policy: Policy) -> FlagshimError | None:
    if policy.exemption.programs:
        return FlagshimError(
            "--except: the bpf engine has no need of it: it is no tracer", "leave one of them out"
        )
    return why_not(policy.rules)


def _found(command: str) -> str:
    """Return the file that exec(2) is going to try."""
    return shutil.which(command) or command


def _warn(executable: str, name: str, pid: int | None = None) -> None:
    """Say, before anything is served, by which ways opens may go past the engine."""
    ways = blind_spots(executable)
    if pid is not None and _has_ring(pid):
        ways.append("it has set up io_uring")
    told = (
        "flags are cleared wherever they are given, not only where refused; "
        "openat2 and opens from inside libc (fopen) are not covered"
    )
    say(f"bpf engine, {name}: {told}" + "".join(f"; {way}" for way in ways))


def _has_ring(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return any(
            tracee.fd_path(pid, int(fd)) == b"anon_inode:[io_uring]"
            for fd in os.listdir(f"/proc/{pid}/fd")
        )
    return False
