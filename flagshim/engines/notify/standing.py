"""Who a thread is to the kernel when it opens a file, and being that for a moment.

A supervisor that opens a file for a thread must not be able to open more than the thread
could: credentials(7), capabilities(7), user_namespaces(7), and the labels of security
modules where there are any.
"""

import errno
import os
import re
import resource
from typing import NamedTuple

from flagshim import tracee
from flagshim.credentials import CAP_FOWNER
from flagshim.engines.notify.lanes import Lanes
from flagshim.linux.credentials import (
    capabilities_of,
    secure_bits,
    set_capabilities,
    set_filesystem_ids,
)
from flagshim.linux.pidfds import ids_of, open_thread
from flagshim.linux.tuples import new_tuple

_CAP_SETGID, _CAP_SETUID = 6, 7
_WHO = re.compile(
    rb"\nTgid:\t(?P<pid>\d+)\n(?:.*\n)*?"
    rb"Uid:\t\d+\t(?P<euid>\d+)\t\d+\t(?P<fsuid>\d+)\n"
    rb"Gid:\t\d+\t(?P<egid>\d+)\t\d+\t(?P<fsgid>\d+)\n(?:.*\n)*?"
    rb"Groups:\t(?P<groups>[\d ]*)\n(?:.*\n)*?"
    rb"CapEff:\t(?P<effective>[0-9a-f]+)\n"
)
_PIDFDS_MAX = 251
_PIDFDS_SHARE = 4
"""Pidfds are kept in one of that many parts of the descriptors that we may have: a supervisor needs
others to open files with, and still more if its guard dies."""


class Standing(NamedTuple):
    """What opening a file asks of a thread."""

    pid: int
    """Thread group ID."""
    euid: int
    egid: int
    fsuid: int
    fsgid: int
    groups: bytes
    """Supplementary group IDs, as they stand in proc(5), status."""
    effective: int
    """Capability set, bit N for capability N."""

    @property
    def ids(self) -> tuple[int, int, int, int, bytes]:
        """All but the capabilities."""
        return self[1:6]


def read_standing(tid: int) -> Standing:
    """Look at a thread in proc(5), status; credentials are each thread's own.

    Raises:
        ProcessLookupError: it is gone.
    """
    try:
        match = _WHO.search(tracee.read_status(tid))
    except FileNotFoundError:
        raise ProcessLookupError from None
    if match is None:
        raise ProcessLookupError(tid)
    pid, euid, fsuid, egid, fsgid, groups, effective = match.groups()
    return Standing(
        int(pid), int(euid), int(egid), int(fsuid), int(fsgid), groups, int(effective, 16)
    )


class CannotBe(Exception):
    """This process cannot be what a thread is."""


class Standings:
    """Looks at threads again and again, and no more than it has to.

    A pidfd tells a thread's IDs ten times as quickly as proc(5) (Linux 6.13), and never those of
    another thread that got its number. It does not tell the groups; as long as nobody has
    changed any, they are everybody's.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._groups: bytes | None = None
        self._pidfds: dict[int, int] = {}

    def of(self, tid: int) -> Standing:
        """Look at a thread that makes a call just now.

        Raises:
            ProcessLookupError: it is gone.
        """
        if self._groups is None or self._lanes.someone_changed_groups:
            standing = read_standing(tid)
            self._groups = standing.groups
            return standing
        try:
            ids = ids_of(self.pidfd(tid))
        except ProcessLookupError:  # it was a former thread's
            self.forget(tid)
            ids = ids_of(self.pidfd(tid))
        except OSError:
            return read_standing(tid)
        return new_tuple(Standing, (*ids, self._groups, capabilities_of(tid)[0]))

    def pidfd(self, tid: int) -> int:
        """Return a pidfd of a thread, which may be one of a former thread with that ID."""
        fd = self._pidfds.get(tid)
        if fd is None:
            while len(self._pidfds) >= _pidfds_max():
                self.forget(next(iter(self._pidfds)))
            try:
                fd = _open_pidfd(tid)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._pidfds:
                    raise
                self.close()
                fd = _open_pidfd(tid)
            self._pidfds[tid] = fd
        return fd

    def forget(self, tid: int) -> None:
        """Have done with a thread that is gone."""
        if tid in self._pidfds:
            os.close(self._pidfds.pop(tid))

    def close(self) -> None:
        """Let go of all descriptors that are kept; who is asked for later is looked at anew."""
        for tid in tuple(self._pidfds):
            self.forget(tid)


def _pidfds_max() -> int:
    """Return how many pidfds to keep; the limit may be changed at any time (prlimit(1))."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(_PIDFDS_MAX, soft // _PIDFDS_SHARE))


def _open_pidfd(tid: int) -> int:
    try:
        return open_thread(tid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.pidfd_open(tracee.thread_group(tid))  # threads mostly share descriptors


class Impersonation:
    """This process, which may be somebody else for as long as an open takes."""

    def __init__(self) -> None:
        self._own = own = read_standing(os.getpid())
        effective, self._permitted, self._inheritable = capabilities_of(0)
        self._user_namespace = os.readlink("/proc/self/ns/user")
        self.label = label_of("self")
        """Ours of a security module; None without such a module."""
        both = 1 << _CAP_SETUID | 1 << _CAP_SETGID
        self._may_change = own.effective & both == both
        self._usual_root = (
            own.euid == 0 and effective == self._permitted and secure_bits() == 0
        )  # fmt: skip
        """Whether we lose all effective capabilities with euid 0, and get them back with it."""
        # Those we have just now. Root has no use for its own, and keeps those of the last thread.
        self._egid, self._groups = own.egid, own.groups
        self._changed = self._must_raise = False
        self.last_ids: tuple[int, int, int, int, bytes] | None = None
        """Of a thread without capabilities that we were last, if all it takes to be that again is
        its euid."""
        self.overflow = _overflow_id("uid")
        self._ambiguous = self._ambiguous_ids()

    def can_be(self, thread: Standing, tid: int) -> bool:
        """Tell whether this process could be what a thread is, or less, and nothing more."""
        if self.label is not None and label_of(tid) != self.label:
            return False
        if self._ambiguous and not self._ambiguous.isdisjoint(_words(thread)):
            return False
        return self._may_change or self._own.ids == thread.ids

    def _ambiguous_ids(self) -> frozenset[bytes]:
        """Return the IDs that may be those of somebody our user namespace has no number for.

        Threads have only IDs that we had, or that have a number: where ours have one, or where
        the number that the kernel shows instead is nobody's, all of them are what they seem.
        """
        shown = {str(_overflow_id(kind)).encode() for kind in ("uid", "gid")}
        if all(_maps_all(kind) or not _maps(kind) for kind in ("uid", "gid")):
            return frozenset()
        return frozenset(shown & _words(self._own))

    def shares_capabilities(self, thread: Standing, tid: int) -> bool:
        """Tell whether a thread's capabilities mean the same as ours: one user namespace."""
        return not thread.effective or _user_namespace_of(tid) == self._user_namespace

    def become(self, thread: Standing, with_capabilities: bool) -> None:
        """Be what a thread is, until `come_back`.

        Args:
            thread: who to be.
            with_capabilities: whether its capabilities mean the same as ours; without them one
                can open less, never more.

        Raises:
            CannotBe: and what we are until `come_back` is neither.
        """
        try:
            self._become(thread, with_capabilities)
        except OSError:  # our user namespace lacks an ID, or does not let groups be set
            raise CannotBe from None

    def _become(self, thread: Standing, with_capabilities: bool) -> None:
        own = self._own
        effective = thread.effective & self._permitted if with_capabilities else 0
        same = (own.euid, self._egid, own.fsuid, self._egid, self._groups) == thread.ids
        self.last_ids = None
        if same and own.effective == effective:
            self._remember(thread, effective)
            return
        self._changed = self._must_raise = True
        if not same:
            if self._groups != thread.groups:
                os.setgroups([int(group) for group in thread.groups.split()])
                self._groups = thread.groups
            if self._egid != thread.egid:
                os.setresgid(-1, thread.egid, -1)
                self._egid = thread.egid
            os.setresuid(-1, thread.euid, -1)
            if (thread.euid, thread.egid) != (thread.fsuid, thread.fsgid):
                self._set_effective(self._permitted)
                set_filesystem_ids(thread.fsuid, thread.fsgid)
            elif self._usual_root and thread.euid and not effective:
                self._must_raise = False
                self._remember(thread, effective)
                return
        self._set_effective(effective)

    def _remember(self, thread: Standing, effective: int) -> None:
        if not effective:
            self.last_ids = thread.ids

    def become_last(self) -> None:
        """Be who we were last, until `come_back`; only if there are `last_ids`.

        Raises:
            OSError: we cannot, and what we are until `come_back` is neither.
        """
        assert self.last_ids
        self._changed, self._must_raise = True, False
        os.setresuid(-1, self.last_ids[0], -1)

    def come_back(self) -> None:
        """Be ourselves again, but for groups; or end, and let another go on who is."""
        if not self._changed:
            return
        own = self._own
        try:
            if self._must_raise:
                self._set_effective(self._permitted)
            os.setresuid(-1, own.euid, -1)
            if self._must_raise:
                set_filesystem_ids(own.euid, self._egid)
                self._set_effective(own.effective)
        except OSError as error:
            raise SystemExit(f"cannot be ourselves again: {error.strerror}") from None
        self._changed = False

    def _set_effective(self, capabilities: int) -> None:
        set_capabilities(capabilities, self._permitted, self._inheritable)

    def foresees_refusal(
        self, owner: int, thread: Standing, tid: int, shares_capabilities: bool
    ) -> bool | None:
        """Tell whether the kernel refuses a thread O_NOATIME on a file: None to ask it.

        As inode_owner_or_capable() in fs/inode.c has it.

        Args:
            owner: of the file, as its mount and our user namespace show it.
            thread: who wants to open it.
            tid: its ID.
            shares_capabilities: whether it is in our user namespace.
        """
        if owner == self.overflow:  # or one whom our namespace has no number for
            return None
        if owner == thread.fsuid:
            return False
        if not thread.effective >> CAP_FOWNER & 1:
            return True
        return not shares_capabilities and not _is_mapped(owner, tid)


def _is_mapped(uid: int, tid: int) -> bool:
    """Tell whether a uid of ours has a number in a thread's user namespace."""
    with open(f"/proc/{tid}/uid_map", "rb") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(outside <= uid < outside + count for _, outside, count in ranges)


def _user_namespace_of(tid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{tid}/ns/user")
    except OSError:  # a thread that we may not look into
        return None


def label_of(tid: int | str) -> bytes | None:
    """Return the label that a security module has given a thread; None without such a module."""
    try:
        with open(f"/proc/{tid}/attr/current", "rb") as file:
            return file.read() or None
    except OSError:
        return None


def _overflow_id(kind: str) -> int:
    try:
        with open(f"/proc/sys/kernel/overflow{kind}", "rb") as file:
            return int(file.read())
    except OSError:
        return 65534


def _words(who: Standing) -> set[bytes]:
    return {b"%d" % number for number in who.ids[:4]} | set(who.groups.split())


def _maps_all(kind: str) -> bool:
    """Tell whether every ID there is has its own number in our user namespace."""
    with open(f"/proc/self/{kind}_map", "rb") as file:
        return file.read().split() == [b"0", b"0", b"4294967295"]


def _maps(kind: str) -> bool:
    """Tell whether the number that is shown for IDs we have none for is one of ours, too."""
    with open(f"/proc/self/{kind}_map", "rb") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    number = _overflow_id(kind)
    return any(inside <= number < inside + count for inside, _, count in ranges)
