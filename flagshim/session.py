"""One supervised run: a command, rules, an engine, and the trace they leave."""

import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from flagshim import __version__, ci, descriptors, tracee
from flagshim.engines.attach import AttachEngine, Target, find_target, seize_target
from flagshim.engines.command import User, command_failure, command_for
from flagshim.engines.detach import HelperDied, NotServed, become_served, start_helper
from flagshim.engines.injection import check_injectable, inject_filter
from flagshim.engines.ptrace import PtraceEngine, filter_for
from flagshim.engines.stops import Stops
from flagshim.errors import FlagshimError
from flagshim.linux.process import set_name
from flagshim.posts import Supervision, exit_status_of, take_post
from flagshim.rules import MACHINE, Rule
from flagshim.saying import say, say_in_passing, say_in_syslog
from flagshim.status import tell
from flagshim.trace.events import text_or_bytes
from flagshim.trace.store import Session, begin_session, take_back
from flagshim.trace.writer import TraceWriter


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    exit_status: int
    """CMD's exit status; minus the signal that ended it."""
    seen: int
    cleared: int
    still_refused: int
    """Calls that failed even without the flag."""
    not_rescued: int
    """Calls that the notify engine left to the kernel, which refused or may have refused them."""
    lost: int
    """Events that are not in the trace."""
    trouble: str
    """Why not."""
    session: int
    """Its number in the trace."""


def supervise(argv: Sequence[str], how: Supervision, user: User | None = None) -> Outcome:
    """Run a command under the ptrace engine until it and all it started have ended.

    Descriptors 0, 1 and those above 2 that were not close-on-exec are CMD's alone
    afterwards: the caller's copies are closed, so that whoever reads the other end of a
    pipe sees it end when CMD closes it.

    Args:
        argv: the command, found through PATH.
        how: rules and trace.
        user: whom to run the command as; None for ourselves.

    Raises:
        FlagshimError: CMD or the trace is unusable; CMD has not run then.
    """
    check_command(argv[0])
    handed_on = descriptors.inherited()
    command = command_for(argv, filter_for(how.policy), user)
    stops = Stops()
    session = begin(argv, how, PtraceEngine.name, uid_of(user))
    post = take_post(how, session, say_in_passing)
    tell("begin", session=session.id)
    try:
        status = post.engine.run(command, handed_on, stops)
    except FlagshimError:
        post.leave(None, began=False)
        raise
    exit_status = os.waitstatus_to_exitcode(status)
    post.leave(exit_status)
    return outcome_of(exit_status, post.writer, session)


def become(argv: Sequence[str], how: Supervision, user: User | None = None) -> NoReturn:
    """Become a command, supervised by a detached helper until it and its kind have ended.

    The command keeps this process's PID, parent, session and terminal. What the helper has to
    complain of goes to syslog(3), because it holds nothing of the caller's.

    Args:
        argv: the command, found through PATH.
        how: rules and trace.
        user: whom to become; None to stay who we are.

    Raises:
        FlagshimError: CMD or the trace is unusable; CMD has not run then.
    """
    check_command(argv[0])
    session = begin(argv, how, PtraceEngine.name, uid_of(user))

    def serve(pid: int, report: int, start: Callable[[], None]) -> None:
        stops = Stops()
        post = take_post(how, session, say_in_syslog)
        start()
        status = post.engine.serve(pid, {pid}, stops)
        started = not os.read(report, 1)
        post.leave(exit_status_of(status), began=started)
        if post.writer.lost:
            lost, trouble = post.writer.lost, post.writer.trouble
            say_in_syslog(f"trace {how.trace}: {lost} events lost ({trouble})")

    command = command_for(argv, filter_for(how.policy), user)
    try:
        become_served(command, how.policy.options, serve, say_in_syslog)
    except NotServed:
        take_back(session)
        raise


def attach(pid: int, how: Supervision, seconds: float | None) -> Outcome:
    """Supervise a running process until it ends, a signal tells us to leave it, or time is up.

    Args:
        pid: the process; all its threads, and from then on its children, are served.
        how: rules and trace.
        seconds: how long; None for as long as it lives.

    Raises:
        FlagshimError: it cannot be traced, or the trace is unusable.
    """
    target = _find_target(pid, how)
    stops = Stops()
    session = begin(target.argv, how, AttachEngine.name, target.uid)
    writer = TraceWriter(session, say_in_passing, how.keep)
    engine = AttachEngine(how.policy, writer)
    try:
        engine.run(target, seconds, stops, lambda: say_served(pid, seconds))
    except FlagshimError:
        writer.close(None, began=False)
        raise
    if engine.left and tracee.has_seccomp_filter(pid):
        say(
            f"process {pid} has a seccomp filter: if it is of a flagshim that was killed, opens "
            f"with the flag fail with ENOSYS now; flagshim attach {pid} serves it again"
        )
    writer.close(None)
    return outcome_of(0, writer, session)


def attach_for_good(pid: int, how: Supervision) -> int:
    """Put our filter into a running process, and have a detached helper serve it until it ends.

    The filter cannot be taken back, and without a supervisor what it stops fails with ENOSYS:
    there is no leaving.

    Args:
        pid: the process.
        how: rules and trace.

    Returns:
        The PID of the helper.

    Raises:
        FlagshimError: it cannot be traced or given a filter, or the trace is unusable.
    """
    target = _find_target(pid, how)
    check_injectable(pid)
    session = begin(target.argv, how, f"{PtraceEngine.name} injected", target.uid)

    def work(start: Callable[[], None]) -> None:
        tids: set[int] = set()
        seize_target(target, how.policy.options, tids.add)
        post = take_post(how, session, say_in_syslog)
        for tid in tids:  # so that the guard knows whom to serve from the first moment
            post.roster.add(tid)
        try:
            inject_filter(pid, tids, filter_for(how.policy))
        except FlagshimError:
            post.leave(None, began=False)
            raise
        stops = Stops()
        start()
        post.leave(exit_status_of(post.engine.serve(pid, tids, stops)))

    try:
        return start_helper(f"supervisor of {pid}", work, say_in_syslog)
    except HelperDied:
        raise FlagshimError(
            f"the helper was killed; process {pid} may have the filter, and nobody who serves it",
            f"flagshim attach {pid}",
        ) from None
    except NotServed:
        take_back(session)
        raise


def say_served(pid: int, seconds: float | None) -> None:
    """Tell from when on a process that runs already is served, and how long."""
    end = "until ^C" if seconds is None else f"for {seconds:g} s or until ^C"
    say(f"PID {pid} is served from now on, {end}")


def outcome_of(exit_status: int, writer: TraceWriter, session: Session) -> Outcome:
    """Sum up what a writer, closed by now, was given."""
    counts = (writer.seen, writer.cleared, writer.still_refused, writer.not_rescued, writer.lost)
    return Outcome(exit_status, *counts, writer.trouble, session.id)


def _find_target(pid: int, how: Supervision) -> Target:
    target = find_target(pid)
    names = tracee.names(pid)
    if how.policy.exemption.covers(names):
        name = os.fsdecode(min(names))
        raise FlagshimError(f"process {pid} ({name}) is exempt itself", "change --except")
    return target


def uid_of(user: User | None) -> int:
    """Return whom a command is run as."""
    return user.uid if user else os.getuid()


def begin(argv: Sequence[str], how: Supervision, engine: str, uid: int) -> Session:
    """Add a session to a trace, made if missing, and show up in ps(1) as who we are."""
    set_name("flagshim")
    if os.readlink("/proc/self") != str(os.getpid()):
        raise FlagshimError(
            "/proc is that of another PID namespace", "mount one for this: unshare --mount-proc"
        )
    row = _session_row(argv, how.policy.rules, engine, uid)
    return begin_session(how.trace, row, ci.labels(os.environ))


def check_command(command: str) -> None:
    """Find the everyday mistakes before a trace is made; exec(2) finds the others."""
    found = shutil.which(command, os.F_OK) or os.path.isdir(command)
    if not command or not found:
        raise command_failure(command or "''", errno.ENOENT)
    if os.path.isdir(command) and "/" in command:
        raise command_failure(command, errno.EISDIR)


def _session_row(
    argv: Sequence[str], rules: Sequence[Rule], engine: str, uid: int
) -> dict[str, object]:
    return {
        "started_ns": time.time_ns(),
        "flagshim": __version__,
        "engine": engine,
        "host": platform.node(),
        "kernel": platform.release(),
        "machine": MACHINE,
        "uid": uid,
        "cwd": text_or_bytes(_cwd()),
        "command": json.dumps(list(argv)),
        "rules": json.dumps([_rule_as_json(rule) for rule in rules]),
    }


def _cwd() -> bytes:
    try:
        return os.getcwdb()
    except OSError:  # it was removed, which need not trouble CMD
        return b"(deleted)"


def _rule_as_json(rule: Rule) -> dict[str, object]:
    fields = asdict(rule)
    del fields["origin"]
    return fields
