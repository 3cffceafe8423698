"""Refused opens collected: how many, when, on what; grouped by cause."""

import errno
import os
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from flagshim import tracee
from flagshim.diagnosis.causes import Cause, Explanation, Sureness, explain
from flagshim.diagnosis.evidence import Evidence, Look, from_event
from flagshim.linux.files import AT_FDCWD
from flagshim.openflags import bits_of
from flagshim.rules import MACHINE
from flagshim.trace.events import Decision, OpenEvent, Reason

STORM_PER_SECOND = 23
"""EPERMs in one second from which on it is called a storm."""
_LOOKS_PER_SECOND = 307
"""Calls examined at most; the others are taken for what their like were."""
_NAMES_MAX = 10_007
_EPERM = errno.errorcode[errno.EPERM]

_RETRIED = "the program made each again without the flag, and the kernel took it"
_NOATIME = bits_of("O_NOATIME", MACHINE)

_Like = tuple[object, ...]
_Key = tuple[str, Cause, str, Sureness, str]


@dataclass
class Group:
    """The EPERMs of one program that have one cause."""

    program: str | bytes
    evidence: Evidence
    """Of the first of them."""
    explanation: Explanation
    count: int = 0
    assumed: int = 0
    """Of these, not examined but taken for what others like them were."""
    retried: int = 0
    """Of these, made again by the program without O_NOATIME, and taken by the kernel then."""
    paths: Counter[str | bytes | None] = field(default_factory=Counter)


@dataclass
class Storm:
    """How a kind of event is spread over time, paths and programs."""

    count: int = 0
    seconds: Counter[int] = field(default_factory=Counter)
    """By second since the epoch."""
    paths: Counter[str | bytes | None] = field(default_factory=Counter)
    programs: Counter[str | bytes] = field(default_factory=Counter)
    first_ns: int = 0
    last_ns: int = 0

    def add(self, event: OpenEvent) -> None:
        """Count one event."""
        self.count += 1
        self.seconds[event.time_ns // 10**9] += 1
        self.programs[event.program] += 1
        if len(self.paths) < _NAMES_MAX or _path(event) in self.paths:
            self.paths[_path(event)] += 1
        self.first_ns = min(self.first_ns or event.time_ns, event.time_ns)
        self.last_ns = max(self.last_ns, event.time_ns)

    @property
    def peak(self) -> int:
        """How many in the busiest second."""
        return max(self.seconds.values(), default=0)

    @property
    def is_storm(self) -> bool:
        """Whether it is more than a program now and then being refused something."""
        return self.peak >= STORM_PER_SECOND


class Collection:
    """Takes refused opens as they come, and says what is the matter."""

    def __init__(self, look: Look = Look.ALL) -> None:
        """Collect.

        Args:
            look: what more can be found out about the events.
        """
        self.look = look
        self._like: dict[_Like, Group] = {}
        self._groups: dict[_Key, Group] = {}
        self._last: dict[int, tuple[OpenEvent, int, Group]] = {}
        self._second = 0
        self._looks = 0
        self.storm = Storm()
        self.failed: Counter[str] = Counter()
        """Failed calls, by error, of those that were shown to us."""
        self.spared = 0
        """EPERMs that flagshim spared the program, counted among those of `storm`."""
        self.shown = 0

    def follow(self, event: OpenEvent, dirfd: int) -> None:
        """Take what a thread did after a refusal: the same again without the flag, perhaps.

        Then the kernel itself has said that the flag was the reason; and the file is open
        for a moment, so that its owner can be seen.
        """
        if event.tid not in self._last or event.errno is not None:
            return
        last, last_dirfd, group = self._last.pop(event.tid)
        again = (event.path, event.flags_before, dirfd)
        if again != (last.path, last.flags_before & ~_NOATIME, last_dirfd):
            return
        group.retried += 1
        if group.evidence.owner is None and event.fd is not None and event.path is not None:
            opened = tracee.fd_path(event.tid, event.fd)
            name = os.path.basename(os.fsencode(event.path))
            if opened and os.path.basename(opened) == name:  # it has not been closed yet
                owner = tracee.fd_owner(event.tid, event.fd)
                seen = group.evidence.event._replace(owner_uid=owner)
                group.evidence = replace(group.evidence, event=seen)
                group.explanation = explain(group.evidence)

    def take(self, event: OpenEvent, began: bool | None = None, dirfd: int = AT_FDCWD) -> None:
        """Take one event; of those that were neither refused nor spared it only counts the error.

        Args:
            event: the call.
            began: whether the kernel began it, if anybody looked.
            dirfd: where a relative path started.
        """
        self.shown += 1
        if event.errno is not None:
            self.failed[event.errno] += 1
        spared = event.decision == Decision.CLEARED and event.reason != Reason.ALWAYS
        if spared and event.errno != _EPERM:
            self.spared += 1
        elif event.errno != _EPERM:
            return
        self.storm.add(event)
        like = _like(event, began)
        known = self._like.get(like)
        path = _path(event)
        if known is not None and (path in known.paths or not self._may_look()):
            known.assumed += path not in known.paths
            self._count(known, path)
            self._last[event.tid] = (event, dirfd, known)
            return
        evidence = from_event(event, began, self.look)
        explanation = explain(evidence)
        key = (str(event.program), *explanation[:4])
        group = self._groups.setdefault(key, Group(event.program, evidence, explanation))
        self._count(group, path)
        if len(self._last) >= _NAMES_MAX:
            self._last.clear()
        self._last[event.tid] = (event, dirfd, group)
        if len(self._like) >= _NAMES_MAX:
            self._like.clear()
        self._like[like] = group

    def groups(self) -> list[Group]:
        """Return what was found, the most frequent first."""
        merged: dict[tuple[object, ...], Group] = {}
        for group in sorted(self._groups.values(), key=lambda group: -group.count):
            explanation = group.explanation
            if group.retried == group.count:
                explanation = explanation._replace(sureness=Sureness.CERTAIN, why=_RETRIED)
            kept = tuple(command for command in explanation.commands if _has_sense(command))
            group.explanation = explanation._replace(commands=kept)
            # What was not known of one when it was taken may have turned out since.
            key = (group.program, explanation.title, explanation.sureness)
            first = merged.setdefault(key, group)
            if first is not group:
                first.count += group.count
                first.assumed += group.assumed
                first.retried += group.retried
                first.paths += group.paths
        return sorted(merged.values(), key=lambda group: -group.count)

    @staticmethod
    def _count(group: Group, path: str | bytes | None) -> None:
        group.count += 1
        if len(group.paths) < _NAMES_MAX or path in group.paths:
            group.paths[path] += 1

    def _may_look(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._looks = second, 0
        self._looks += 1
        return self._looks <= _LOOKS_PER_SECOND


def _has_sense(command: tuple[str, ...]) -> bool:
    """Tell whether the process that a command is about is still there."""
    about = command[2] if command[:2] == ("flagshim", "attach") else ""
    return not about or tracee.is_alive(int(about))


def _path(event: OpenEvent) -> str | bytes | None:
    return event.resolved if event.resolved is not None else event.path


def _like(event: OpenEvent, began: bool | None) -> _Like:
    """Return what events must have in common for one to be taken for the other."""
    return (
        event.program,
        event.pid,
        event.syscall,
        event.flags_after,
        event.decision,
        event.reason,
        event.owner_uid,
        event.fsuid,
        began,
    )
