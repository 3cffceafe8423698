"""Diagnoses from beginning to end: of running processes, of a command, of a trace."""

import errno
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flagshim.diagnosis.collection import Collection
from flagshim.diagnosis.evidence import Look
from flagshim.engines.bpf.observer import Selection
from flagshim.engines.bpf.program import Unavailable
from flagshim.engines.bpf.records import ENTERED_NO, ENTERED_YES, RawOpen
from flagshim.engines.command import User
from flagshim.engines.policy import Policy
from flagshim.posts import Supervision
from flagshim.reports.diagnosis import Scope
from flagshim.reports.text import command_line, exit_status
from flagshim.rules import BUILT_IN
from flagshim.saying import say
from flagshim.session import supervise
from flagshim.trace.events import OpenEvent
from flagshim.trace.reader import TraceReader
from flagshim.watching import ENGINE, Watch, Watched

_EPERM_ONLY = (errno.EPERM,)
_NEVER = ("opens of 32-bit programs", "opens by io_uring")
"""What the tracepoints do not show of anybody."""

Diagnosis = tuple[Collection, Scope]
_BEGAN = {ENTERED_NO: False, ENTERED_YES: True}


class _Shown:
    """Gives a collection what a Watch tells of."""

    def __init__(self) -> None:
        self.collection = Collection()

    def show(self, raw: RawOpen, event: OpenEvent) -> None:
        if raw.follows:
            self.collection.follow(event, raw.dirfd)
        else:
            self.collection.take(event, _BEGAN.get(raw.entered), raw.dirfd)

    def diagnosis(self, what: str, watched: Watched) -> Diagnosis:
        failed = {_name(number): n for number, n in watched.returned.items() if number}
        unseen = list(_NEVER)
        if watched.lost:
            unseen.insert(0, f"{watched.lost} EPERMs that came faster than they could be told of")
        if watched.misses["call"]:
            unseen.insert(0, f"{watched.misses['call']} calls of any process, left out by BPF")
        if watched.misses["child"]:
            unseen.insert(0, f"{watched.misses['child']} processes, too many at a time")
        return self.collection, Scope(
            what,
            watched.seconds,
            watched.returned.total(),
            Counter(failed),
            tuple(unseen),
        )


def of_processes(
    pids: tuple[int, ...], everybody: bool, seconds: float, trace: Path | None
) -> Diagnosis:
    """Look at running processes for a while.

    Args:
        pids: which.
        everybody: all of the machine.
        seconds: how long at most.
        trace: file to add the refused opens to; None for none.

    Raises:
        FlagshimError: it cannot be done here, or one is not there.
    """
    selection = Selection(pids, all=everybody, errnos=_EPERM_ONLY)
    watch = Watch(selection, trace, entries=True)
    shown = _Shown()
    what = "all processes" if everybody else ", ".join(f"PID {pid}" for pid in pids)
    watched = watch.processes(
        seconds,
        shown.show,
        lambda: None,
        lambda: say(f"looking at {what} for {seconds:g} s; ^C ends it"),
    )
    return shown.diagnosis(what, watched)


def of_command(argv: Sequence[str], user: User | None, trace: Path) -> Diagnosis:
    """Run a command, and look at it until it and all it started have ended.

    Args:
        argv: the command, found through PATH.
        user: whom to run it as; None for ourselves.
        trace: file to add the refused opens to.

    Raises:
        FlagshimError: it cannot be run.
    """
    shown = _Shown()
    try:
        watch = Watch(Selection(errnos=_EPERM_ONLY), trace, entries=True)
        watched = watch.command(argv, user, shown.show)
    except Unavailable as error:
        say(f"{error.message}: ptrace instead, which shows opens with O_NOATIME only")
        return _under_ptrace(argv, user, trace)
    what = f"{command_line(argv)} (exit status {exit_status(watched.exit_status)})"
    return shown.diagnosis(what, watched)


def _under_ptrace(argv: Sequence[str], user: User | None, trace: Path) -> Diagnosis:
    outcome = supervise(argv, Supervision(Policy((BUILT_IN,)), trace), user)
    collection, scope = of_trace(trace, newest=True)
    what = f"{command_line(argv)} (exit status {exit_status(outcome.exit_status)})"
    return collection, replace(scope, what=what)


def of_trace(trace: Path, newest: bool = False) -> Diagnosis:
    """Look at the events of a trace.

    Args:
        trace: the file.
        newest: only of the session that was begun last.

    Raises:
        FlagshimError: it cannot be read.
    """
    with TraceReader(trace) as reader:
        sessions = reader.sessions(limit=1 if newest else None)
        ids = {session.id for session in sessions}
        here = all(session.host == platform.node() for session in sessions)
        collection = Collection(Look.FILE if here else Look.NOTHING)
        for traced in reader.events():
            if traced.session_id in ids:
                collection.take(traced.event)
        unseen = [
            f"{printable_spot.kind}: {printable_spot.count} times"
            for session_id, spots in reader.blind_spots().items()
            if session_id in ids
            for printable_spot in spots
        ]
    lost = sum(session.lost for session in sessions)
    if lost:
        unseen.append(f"{lost} opens that are not in the trace")
    if any(session.engine != ENGINE for session in sessions):
        unseen.append("opens without a flag of the rules that the trace was made with")
    unseen.append("who the processes were: they are judged by what the trace says of them")
    storm = collection.storm
    seconds = (
        sum(
            (session.ended_ns - session.started_ns) / 1e9
            for session in sessions
            if session.ended_ns is not None
        )
        or (storm.last_ns - storm.first_ns) / 1e9
    )
    return collection, Scope(
        f"trace {trace}", seconds, collection.shown, collection.failed, tuple(unseen)
    )


def _name(number: int) -> str:
    return errno.errorcode.get(number, "others")
