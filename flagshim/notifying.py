"""Sessions of the notify engine: calls held by a seccomp listener, supervisors that may die."""

import contextlib
import os
import select
import shutil
import socket
from collections.abc import Callable, Sequence
from typing import NoReturn

from flagshim import descriptors, tracee
from flagshim.engines.command import Command, User, command_for
from flagshim.engines.detach import NotServed, become_served
from flagshim.engines.launch import fork_waiting
from flagshim.engines.notify.crew import Crew, guards
from flagshim.engines.notify.guard import Guard
from flagshim.engines.notify.post import Post, new_post
from flagshim.engines.policy import Fate, Policy
from flagshim.engines.stops import Stops
from flagshim.errors import LIMITS, FlagshimError, hint_for
from flagshim.linux.pidfds import wait_status_of
from flagshim.linux.process import set_title
from flagshim.openflags import bits_of
from flagshim.posts import Supervision, exit_status_of
from flagshim.rules import MACHINE, When, flag_bits
from flagshim.saying import Say, say_in_passing, say_in_syslog
from flagshim.seccomp import build_listener_filter
from flagshim.session import (
    Outcome,
    begin,
    check_command,
    outcome_of,
    uid_of,
)
from flagshim.status import tell
from flagshim.trace.store import Session, take_back
from flagshim.trace.writer import TraceWriter

ENGINE = "notify"
_END_SECONDS = 5.0
"""How long a command whose filter is gone may take to end altogether."""


@guards
def run_notify(argv: Sequence[str], how: Supervision, user: User | None = None) -> Outcome:
    """Run a command under the notify engine until it and all it started have ended.

    Args:
        argv: the command, found through PATH.
        how: rules and trace.
        user: whom to run the command as; None for ourselves.

    Raises:
        FlagshimError: CMD or the trace is unusable; CMD has not run then.
    """
    check_command(argv[0])
    handed_on = descriptors.inherited()
    ours, theirs = socket.socketpair()
    command = _command(argv, how.policy, user, (theirs.fileno(), ours.fileno()))
    Stops()  # blocks the signals that we take when we look for them
    session = begin(argv, how, ENGINE, uid_of(user))
    tell("begin", session=session.id)
    child = fork_waiting(command)
    child.release()
    theirs.close()
    guard = writer = None
    status = 0
    with ours:
        try:
            listener = _received(ours)
            if listener is not None:
                post = new_post(how.policy, listener, child.pid, command.name)
                crew = Crew(post, _successor(how, session, say_in_passing))
                writer = TraceWriter(session, say_in_passing, how.keep)
                guard = Guard(post, crew, writer, say_in_passing)
                crew.begin()
                ours.send(b"g")
        except OSError as error:
            ours.close()  # and so it will not begin
            os.waitpid(child.pid, 0)
            _take_back(session, writer)
            raise FlagshimError(
                f"no supervisor can be started: {error.strerror}", hint_for(error, LIMITS)
            ) from None
    descriptors.blank(0, 1)  # stderr is for our last line
    descriptors.close(handed_on)
    if guard is not None:
        status = guard.run(child.pid) or 0
    else:
        os.waitpid(child.pid, 0)
    reason = child.not_started()
    if reason is not None or writer is None:
        _take_back(session, writer)
        if reason is None:
            raise FlagshimError("CMD was killed before it began", "try again")
        raise command.failure(reason)
    exit_status = os.waitstatus_to_exitcode(status)
    writer.close(exit_status)
    return outcome_of(exit_status, writer, session)


def become_notify(argv: Sequence[str], how: Supervision, user: User | None = None) -> NoReturn:
    """Become a command, with a detached helper as the guard of those who supervise it.

    Args:
        argv: the command, found through PATH.
        how: rules and trace.
        user: whom to become; None to stay who we are.

    Raises:
        FlagshimError: CMD or the trace is unusable; CMD has not run then.
    """
    check_command(argv[0])
    session = begin(argv, how, ENGINE, uid_of(user))
    ours, theirs = socket.socketpair()
    command = _command(argv, how.policy, user, (theirs.fileno(), ours.fileno()))

    @guards
    def serve(pid: int, report: int, start: Callable[[], None]) -> None:
        theirs.detach()  # a helper has let go of all but what it needs
        Stops()
        writer = TraceWriter(session, say_in_syslog, how.keep)
        pidfd = os.pidfd_open(pid)
        start()
        listener = _received(ours)
        if listener is None:
            writer.close(None, began=False)
            return
        try:
            post = new_post(how.policy, listener, pid, command.name)
            crew = Crew(post, _successor(how, session, say_in_syslog))
            guard = Guard(post, crew, writer, say_in_syslog)
            crew.begin()
            ours.send(b"g")
        except OSError:
            writer.close(None, began=False)
            raise  # and so CMD does not begin
        ours.close()
        guard.run()
        writer.close(exit_status_of(_wait_status(pid, pidfd)), began=not os.read(report, 1))

    try:
        become_served(command, None, serve, say_in_syslog, ours.fileno())
    except NotServed:
        take_back(session)
        raise


def why_not(policy: Policy) -> FlagshimError | None:
    """Return the reason why this engine cannot do what is asked; None if it can."""
    if policy.fate is Fate.KILL:
        return FlagshimError(
            "--engine notify: it cannot kill CMD (--if-supervisor-dies kill), as others serve on",
            "leave it out, or use --engine ptrace",
        )
    return None


def rather_not(policy: Policy, argv: Sequence[str]) -> FlagshimError | None:
    """Return the reason why another engine would do more of what is asked; None if none would."""
    if any(rule.when is When.ALWAYS for rule in policy.rules):
        cause = "a rule says always, and the notify engine takes nothing off when files are made"
        return FlagshimError(cause)
    program = shutil.which(argv[0])
    if program is not None and _has_32_bits(program):
        return FlagshimError(f"{argv[0]} is a program of 32 bits")
    return None


def _has_32_bits(program: str) -> bool:
    with contextlib.suppress(OSError), open(program, "rb") as file:
        return file.read(5) == b"\x7fELF\x01"  # ELFCLASS32 of elf(5)
    return False


def _command(
    argv: Sequence[str], policy: Policy, user: User | None, listener_to: tuple[int, int]
) -> Command:
    bits = flag_bits(policy.rules)
    program = build_listener_filter(bits, bits_of("O_PATH", MACHINE))
    return command_for(argv, program, user, listener_to)


def _received(channel: socket.socket) -> int | None:
    """Wait for the listener; None if the command ended before it had one."""
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    return fds[0] if fds else None


def _wait_status(pid: int, pidfd: int) -> int | None:
    """Return how a process that is not our child has ended, if the kernel tells."""
    select.select([pidfd], [], [], _END_SECONDS)
    status = tracee.wait_status_of_zombie(pid)
    return wait_status_of(pidfd) if status is None else status


def _take_back(session: Session, writer: TraceWriter | None) -> None:
    """Have the trace as if nothing had been begun."""
    if writer is None:
        take_back(session)
    else:
        writer.close(None, began=False)


def _successor(how: Supervision, session: Session, say: Say) -> Callable[[Post], None]:
    """Return what a supervisor does whose guard was killed: it takes its place."""

    def succeed(post: Post) -> None:
        tell_user = say
        text = f"the guard died; {os.getpid()} has taken its place, no call was lost, events may be"
        if post.lanes.guard_leaves:  # nobody waits for us, nor for the end of our stderr
            post.lanes.guard_leaves = False
            descriptors.blank(2)
            tell_user = say_in_syslog
            text = f"run was asked to end; {os.getpid()} serves what CMD has left running"
        crew = Crew(post, succeed)
        with contextlib.suppress(OSError):  # no process to be had just now: it tries again
            crew.begin()  # before all that takes longer: nobody receives calls now
        set_title(f"flagshim: guard of {post.command}")
        writer = TraceWriter(session, tell_user, how.keep, without=True)
        writer.complain(text)
        tell_user(text)
        Guard(post, crew, writer, tell_user).run()
        command = post.confined.command
        status = None if command else os.waitstatus_to_exitcode(post.confined.status)
        writer.close(status, calls=post.lanes.taken)

    return succeed
