"""Calls like one that was answered before, for another file: answered in one piece.

A program that reads a store makes one call again and again. What the rules say of it, and most
of its event, is the same each time. Who the thread is, where its root is, and what file it names
is not, and is asked each time, as for any call; whatever is not as usual is left to the others.
It is one function, because each call of a function in Python adds to what every open costs: so
written it takes half the time of the general way.
"""

import os
import stat
import time
from dataclasses import dataclass

from flagshim import tracee
from flagshim.engines.calls import OpenCall, Process, signed
from flagshim.engines.notify.filesystems import Filesystems
from flagshim.engines.notify.lanes import Lanes
from flagshim.engines.notify.listener import Notification
from flagshim.engines.notify.lookup import DIRECTORY, Lookup, flags_to_find
from flagshim.engines.notify.opener import name_of, reopen
from flagshim.engines.notify.standing import Impersonation, Standings, label_of
from flagshim.linux.files import (
    AT_FDCWD,
    RESOLVE_CACHED,
    RESOLVE_NO_MAGICLINKS,
    facts_of,
    openat2,
)
from flagshim.linux.memory import read_memory
from flagshim.linux.tuples import new_tuple
from flagshim.rules import noatime_refusal
from flagshim.syscalls import ARGUMENTS, I386, Kind
from flagshim.trace.events import Decision, OpenEvent, Reason, text_or_bytes

_FLAGS_AT = {kind: ARGUMENTS[kind].flags for kind in (Kind.OPEN, Kind.OPENAT)}
_UNUSUAL = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY
_BY_OWNER = (Reason.PREDICTED, Reason.FORESEEN)
_RESOLVE = RESOLVE_NO_MAGICLINKS | RESOLVE_CACHED
_HABITS_MAX = 1009
_PAUSE_MAX = 101
_PATH_SIZE = 256  # longer ones are rare


@dataclass(slots=True)
class Habit:
    """What a process does again and again."""

    executable: bytes
    """Of the program that does it."""
    flags_to_find: int
    """For its file, at first."""
    flags: int
    """Without those that it would be refused for."""
    closes_on_exec: int
    """O_CLOEXEC or 0."""
    path: int
    dirfd: int | None
    """Positions of arguments."""
    rewritten: OpenEvent
    """The event of such a call if the file is somebody else's."""
    kept: OpenEvent
    """The same for a file of the thread's own."""
    pause: int = 0
    """How many calls to leave to the others now, where the last ones were in vain."""
    next_pause: int = 0
    """And if the next is in vain as well."""


class Repeats:
    """Knows what processes do again and again, and opens files for that."""

    def __init__(
        self,
        lanes: Lanes,
        standings: Standings,
        lookup: Lookup,
        impersonation: Impersonation,
        filesystems: Filesystems,
    ) -> None:
        self._lanes = lanes
        self._standings = standings
        self._root = lookup.root
        self._impersonation = impersonation
        self._local_mounts = filesystems.local_mounts
        self._habits: dict[tuple[int, int, int], dict[int, Habit]] = {}
        """By AUDIT_ARCH_*, number and flags of the call, as they were in the registers; by PID."""
        self._learnt = 0

    def learn(
        self,
        call: Notification,
        read: OpenCall,
        process: Process,
        executable: bytes,
        event: OpenEvent,
    ) -> None:
        """Take note of a call, if it depends on nothing but the owner what becomes of another.

        Args:
            call: as it was received.
            read: what it was read as.
            process: whose it was.
            executable: what that runs.
            event: of the call.
        """
        position = _FLAGS_AT.get(read.kind)
        if position is None:
            return
        key = call.audit_arch, call.number, call.arguments[position]
        known = self._habits.get(key, {}).get(process.pid)
        if known is not None and known.executable == executable:
            return
        verdict = read.verdict
        if (
            read.abi is I386
            or read.flags & _UNUSUAL
            or read.flags != key[-1]
            or event.reason not in _BY_OWNER
            or event.owner_uid == self._impersonation.overflow
            or verdict.clear
            or not verdict.clear_on
            or not all(noatime_refusal(number, bits) for number, bits, _ in verdict.clear_on)
            or any(rule.paths for rule in process.rules)
        ):
            return
        if self._learnt >= _HABITS_MAX:
            self._habits.clear()
            self._learnt = 0
        self._learnt += 1
        flags = read.flags
        for _, bits, _ in verdict.clear_on:
            flags &= ~bits
        assert read.arguments.path is not None
        some = event._replace(path=None, resolved=None)
        self._habits.setdefault(key, {})[process.pid] = Habit(
            executable,
            flags_to_find(flags),
            flags,
            flags & os.O_CLOEXEC,
            read.arguments.path,
            read.arguments.dirfd,
            some._replace(
                flags_after=flags,
                decision=Decision.CLEARED.value,
                rule=",".join(dict.fromkeys(rule for _, _, rule in verdict.clear_on)),
                reason=Reason.PREDICTED.value,
            ),
            some._replace(
                flags_after=some.flags_before,
                decision=Decision.KEPT.value,
                rule=None,
                reason=Reason.FORESEEN.value,
            ),
        )

    def open(self, kind: Kind, call: Notification) -> tuple[OpenEvent, int | None, int] | None:
        """Do for a call what Opener.open does, without waiting, if all is as it was before.

        That is: a thread without capabilities and of the same IDs, in our root, and an everyday
        file that is in the kernel's memory, on a mount that is known. Where that was in vain it is
        not tried again for some calls.

        Returns:
            Its event; the file, or None if the call is to go on as it is; O_CLOEXEC or 0. None
            where all that is for the others to say, and nothing was done.
        """
        position = _FLAGS_AT.get(kind)
        if position is None or self._lanes.someone_confined:
            return None
        habits = self._habits.get((call.audit_arch, call.number, call.arguments[position]))
        if habits is None:
            return None
        tid = call.tid
        who = self._impersonation
        at = start = AT_FDCWD
        fd = None
        try:
            thread = self._standings.of(tid)
            habit = habits.get(thread.pid)
            if (
                habit is None
                or thread[1:6] != who.last_ids
                or thread.effective
                or os.readlink(b"/proc/%d/exe" % tid) != habit.executable
                or (who.label is not None and label_of(tid) != who.label)
            ):
                return None
            if habit.pause:
                habit.pause -= 1
                return None
            habit.pause = habit.next_pause
            habit.next_pause = min(2 * habit.pause + 1, _PAUSE_MAX)
            root = facts_of(AT_FDCWD, b"/proc/%d/root" % tid)
            if (root.mount, root.inode) != self._root:
                return None
            time_ns = time.time_ns()
            memory = read_memory(tid, call.arguments[habit.path], _PATH_SIZE)
            path = memory[: memory.find(b"\0")]
            if len(path) + 1 >= len(memory):  # long, at the end of its memory, or both
                return None
            if not path.startswith(b"/"):
                if habit.dirfd is not None:
                    at = signed(call.arguments[habit.dirfd])
                start = os.open(tracee.directory_of(tid, at), DIRECTORY)
            try:
                who.become_last()
                file = openat2(start, path, habit.flags_to_find, 0, _RESOLVE)
                try:
                    owner, mode, _, _, mount = facts_of(file)
                    if (
                        not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
                        or mount not in self._local_mounts
                        or owner == who.overflow
                    ):
                        return None
                    if owner != thread.fsuid:
                        fd = reopen(file, habit.flags, patient=False)
                finally:
                    os.close(file)
            finally:
                who.come_back()
                if start != AT_FDCWD:
                    os.close(start)
        except OSError:
            return None
        habit.pause = habit.next_pause = 0
        resolved = tracee.absolute_path(tid, at, path, b"/") if fd is None else name_of(fd)
        first = habit.kept if fd is None else habit.rewritten
        name = text_or_bytes(path)
        event = (
            time_ns, tid, thread.pid, first.program, first.syscall, first.abi,
            name, name if resolved == path else resolved and text_or_bytes(resolved),
            first.access, first.flags_before, first.flags_after, first.decision, first.rule,
            first.reason, owner, thread.fsuid, None, None, first.tries,
        )  # fmt: skip
        return new_tuple(OpenEvent, event), fd, habit.closes_on_exec
