"""Opening a file for a thread: as the thread would, with nothing but what the thread has.

A file is looked up with O_PATH first, by the thread's own standing, directory and root. That
opens nothing, and pins it down: what is decided of it, and then opened, is that file, whatever
becomes of its name meanwhile.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from flagshim import tracee
from flagshim.engines.calls import OpenCall, signed
from flagshim.engines.notify.standing import CannotBe, Impersonation, Standing, Standings
from flagshim.linux import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    FileFacts,
    duplicate_of,
    facts_of,
    filesystem_type,
    inode_of,
    open_by_handle_at,
    openat2,
)
from flagshim.rules import noatime_refusal
from flagshim.syscalls import I386, OPEN_HOW_MIN, Kind
from flagshim.trace.events import Reason

_PROC = b"/proc/self/fd/%d"
_LARGE = 1 << 31
_O_LARGEFILE = 0o100000
_O_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
_WITH_EFFECT = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY
_STICKY = stat.S_ISVTX | stat.S_IWOTH, stat.S_ISVTX | stat.S_IWGRP
_ATTEMPTS = 7
"""How often a path is looked up anew that somebody renames meanwhile (openat2(2), EAGAIN)."""
_HANDLE_HEADER, _HANDLE_MAX = 8, 128
_DEPTH_MAX = 101
"""How far below a thread's root directory a path may begin that could lead above that."""

_PSEUDO = frozenset(
    {
        "proc": 0x9FA0, "sysfs": 0x62656572, "cgroup": 0x27E0EB, "cgroup2": 0x63677270,
        "debugfs": 0x64626720, "tracefs": 0x74726163, "securityfs": 0x73636673, "bpf": 0xCAFE4A11,
        "configfs": 0x62656570, "nsfs": 0x6E736673, "pidfs": 0x50494446, "selinuxfs": 0xF97CFF8C,
        "smackfs": 0x43415D53, "apparmorfs": 0x5A3C69F0, "efivarfs": 0xDE5E81E4, "autofs": 0x187,
        "pstore": 0x6165676C, "binfmt_misc": 0x42494E4D, "mqueue": 0x19800202,
        "binderfs": 0x6C6F6F70, "resctrl": 0x7655821, "anonymous inodes": 0x09041934,
        "fusectl": 0x65735543, "nfsd": 0x6E667364, "rpc_pipefs": 0x67596969,
        "functionfs": 0x0A647361, "xenfs": 0xABBA1974, "cpuset": 0x027E0EB0,
    }.values()
)  # fmt: skip
"""Filesystems (include/uapi/linux/magic.h) where it depends on who opened a file what it holds,
or who may use it later."""
_WITH_KEYS = frozenset(
    {
        "AFS": 0x5346414F, "AFS of the kernel": 0x6B414653, "CIFS": 0xFF534D42, "SMB2": 0xFE534D42,
        "eCryptfs": 0xF15F,
    }.values()
)  # fmt: skip
"""Filesystems that ask for the keys of whoever opens a file (keyrings(7)); /proc does not tell
which those are."""
_LOCAL = frozenset(
    {
        "ext2 to ext4": 0xEF53, "XFS": 0x58465342, "Btrfs": 0x9123683E, "F2FS": 0xF2F52010,
        "bcachefs": 0xCA451A4E, "ZFS": 0x2FC12FC1, "tmpfs": 0x01021994, "ramfs": 0x858458F6,
        "SquashFS": 0x73717368, "EROFS": 0xE0F5E1E2,
    }.values()
)  # fmt: skip
"""Filesystems that never wait for a process or another machine."""


class MayWait(Exception):
    """It cannot be ruled out that a filesystem has to be waited for."""


class Leave(Exception):
    """The call is to go on as the program made it.

    Args:
        reason: why.
        number: the errno that the kernel will refuse it with; 0 for none, or if nobody knows.
    """

    def __init__(self, reason: Reason, number: int = 0) -> None:
        super().__init__(reason, number)
        self.reason = reason
        self.number = number


Place = tuple[int, int]
"""Mount ID and inode number of a directory; no other has them as long as it is there."""


class Opened(NamedTuple):
    """A file that was opened for a thread."""

    fd: int
    path: bytes | None


class Opener:
    """Opens files for threads; and sets flags of descriptors they have."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings
        self._impersonation = Impersonation()
        self._root = _place_of(b"/")
        self._local_mounts: set[int] = set()

    def open(
        self,
        call: OpenCall,
        tid: int,
        thread: Standing,
        shares_root: bool,
        is_waiting: Callable[[], bool],
        patient: bool,
    ) -> Opened:
        """Open the file of a call that would be refused, without what it would be refused for.

        Args:
            call: `clear` is filled with the bits that were taken off, as is what led to it.
            tid: the thread, which stands still.
            thread: who that is.
            shares_root: as the method says.
            is_waiting: tells whether the thread is still the one with that ID.
            patient: whether to go on where a filesystem may have to be waited for.

        Raises:
            Leave: the call would not be refused, or not only for that, or must not be helped.
            MayWait: only if not patient.
            ProcessLookupError: the thread was killed meanwhile.
        """
        if call.flags & _O_TMPFILE or (call.flags & os.O_CREAT and call.flags & os.O_EXCL):
            raise Leave(_new_file(call))
        if call.flags & os.O_CREAT and call.flags & os.O_DIRECTORY:
            raise Leave(Reason.FAILED, errno.EINVAL)  # commit 43b450632676, Linux 6.4
        if call.kind is Kind.OPENAT2:
            self._check_how(call, tid)
        who = self._impersonation
        if not who.can_be(thread, tid):
            raise Leave(Reason.NOT_RESCUED_USER)
        shared = who.shares_capabilities(thread, tid)
        if call.flags & os.O_TRUNC and _has_no_room(tid):  # the kernel looks for that first, too
            raise Leave(Reason.FAILED, errno.EMFILE)
        handle = _read_handle(call, tid) if call.kind is Kind.OPEN_BY_HANDLE_AT else None
        start, resolve = self._start(call, tid, shares_root, patient)
        try:
            if not patient:
                resolve |= RESOLVE_CACHED
            # Nothing but O_TRUNC would be for good if all this were of another thread's by now.
            if call.flags & os.O_TRUNC and not is_waiting():
                raise ProcessLookupError
            try:
                who.become(thread, shared)
                file = self._find(call, start, resolve, handle)
                try:
                    facts = self._check_found(call, file, patient)
                    self._decide_on_found(call, tid, thread, file, facts, shared)
                    return self._open_found(call, file, patient, is_waiting)
                finally:
                    os.close(file)
            except CannotBe:
                raise Leave(Reason.NOT_RESCUED_USER) from None
            finally:
                who.come_back()
        finally:
            if start != AT_FDCWD:
                os.close(start)

    def set_flags(
        self, call: OpenCall, tid: int, thread: Standing, is_waiting: Callable[[], bool]
    ) -> bytes | None:
        """Do F_SETFL for a thread on the description that its descriptor stands for.

        Raises:
            Leave, ProcessLookupError: as above.
        """
        fd = signed(call.values[0])
        now = tracee.fd_flags(tid, fd)
        if now is None or now & os.O_PATH:
            raise Leave(Reason.FAILED, errno.EBADF)
        if (now ^ call.flags) & os.O_ASYNC:  # which would register our descriptor, not theirs
            raise Leave(Reason.NOT_RESCUED_ASYNC)
        who = self._impersonation
        if not who.can_be(thread, tid):
            raise Leave(Reason.NOT_RESCUED_USER)
        shared = who.shares_capabilities(thread, tid)
        duplicate = self._duplicate(tid, fd)
        try:
            if not is_waiting():
                raise ProcessLookupError
            try:
                who.become(thread, shared)
                self._decide(call, tid, thread, duplicate, facts_of(duplicate), shared)
                set_flags(duplicate, call.flags & ~call.clear)
            except CannotBe:
                raise Leave(Reason.NOT_RESCUED_USER) from None
            except OSError as error:
                raise Leave(Reason.FAILED, error.errno or 0) from None
            finally:
                who.come_back()
            return _name_of(duplicate)
        finally:
            os.close(duplicate)

    def marked(self, tid: int, offset: int) -> int | None:
        """Return the descriptor of a thread whose file is at an offset; None if there is none."""
        try:
            names = os.listdir(f"/proc/{tid}/fdinfo")
        except OSError:
            return None
        for name in names:
            with contextlib.suppress(OSError), open(f"/proc/{tid}/fdinfo/{name}", "rb") as file:
                if file.readline().split() == [b"pos:", b"%d" % offset]:
                    return int(name)
        return None

    def rewind(self, tid: int, fd: int, offset: int) -> None:
        """Have a file of a thread that is at an offset begin at its start."""
        with contextlib.suppress(OSError, Leave):
            duplicate = self._duplicate(tid, fd)
            if os.lseek(duplicate, 0, os.SEEK_CUR) == offset:
                os.lseek(duplicate, 0, os.SEEK_SET)
            os.close(duplicate)

    # --- where it is --------------------------------------------------------------------

    def _start(self, call: OpenCall, tid: int, same_root: bool, patient: bool) -> tuple[int, int]:
        """Return a descriptor that the path starts from, or AT_FDCWD, and how to resolve it."""
        resolve = call.resolve | RESOLVE_NO_MAGICLINKS
        if call.kind is Kind.OPEN_BY_HANDLE_AT:
            return self._duplicate(tid, signed(call.values[0])), resolve
        if not call.path:
            raise Leave(Reason.FAILED if call.path == b"" else Reason.NOT_RESCUED_MEMORY)
        try:
            if call.path.startswith(b"/") and not call.resolve & RESOLVE_IN_ROOT:
                if call.resolve & RESOLVE_BENEATH:
                    raise Leave(Reason.FAILED, errno.EXDEV)
                if same_root:
                    return AT_FDCWD, resolve
                return os.open(b"/proc/%d/root" % tid, _DIRECTORY), resolve | RESOLVE_IN_ROOT
            start = os.open(tracee.directory_of(tid, call.dirfd), _DIRECTORY)
            if not same_root and not call.resolve & (RESOLVE_IN_ROOT | RESOLVE_BENEATH):
                resolve |= RESOLVE_BENEATH  # what leads out of there would lead into our root
                try:
                    if _may_climb(call) and not _is_inside(start, self._root_of(tid), patient):
                        if b".." in call.path.split(b"/"):
                            raise Leave(Reason.NOT_RESCUED_ROOT)
                        resolve |= RESOLVE_NO_SYMLINKS
                except BaseException:
                    os.close(start)
                    raise
            return start, resolve
        except FileNotFoundError:
            if tracee.has_ended(tid):
                raise ProcessLookupError from None
            raise Leave(Reason.FAILED, errno.EBADF) from None
        except NotADirectoryError:
            raise Leave(Reason.FAILED, errno.ENOTDIR) from None
        except OSError as error:
            raise _ours(error, Reason.NOT_RESCUED_USER) from None

    def shares_root(self, tid: int) -> bool:
        """Tell whether an absolute path means to a thread what it means to us."""
        try:
            return self._root_of(tid) == self._root
        except OSError:  # a thread that is gone, or that we may not look into
            return False

    @staticmethod
    def _root_of(tid: int) -> Place:
        return _place_of(b"/proc/%d/root" % tid)

    def _duplicate(self, tid: int, fd: int) -> int:
        try:
            try:
                return duplicate_of(self._standings.pidfd(tid), fd)
            except ProcessLookupError:  # a former thread's
                self._standings.forget(tid)
                return duplicate_of(self._standings.pidfd(tid), fd)
        except ProcessLookupError:
            raise
        except OSError as error:
            if error.errno == errno.EBADF:
                raise Leave(Reason.FAILED, errno.EBADF) from None
            raise _ours(error, Reason.NOT_RESCUED_USER) from None

    @staticmethod
    def _check_how(call: OpenCall, tid: int) -> None:
        """Ask the kernel whether it takes the flags, mode and resolve at all.

        build_open_flags() in fs/open.c comes before the path, which is refused if empty. What
        comes after the part of the struct that is known here has to be zero (openat2(2), E2BIG).
        """
        _, _, how, size, *_ = call.values
        if size > OPEN_HOW_MIN:
            tail = tracee.memory_or_none(tid, how + OPEN_HOW_MIN, size - OPEN_HOW_MIN)
            if tail is None or any(tail):
                raise Leave(Reason.FAILED, errno.EFAULT if tail is None else errno.E2BIG)
        try:
            openat2(AT_FDCWD, b"", call.flags, call.mode, call.resolve)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Leave(Reason.FAILED, error.errno or 0) from None

    def _find(self, call: OpenCall, start: int, resolve: int, handle: bytes | None) -> int:
        flags = os.O_PATH | os.O_CLOEXEC | call.flags & (os.O_NOFOLLOW | os.O_DIRECTORY)
        if handle is not None:
            return _find_by_handle(handle, start, flags, resolve)
        assert call.path
        for attempt in range(_ATTEMPTS):
            try:
                if call.flags & os.O_CREAT:
                    return _find_to_create(call, start, flags, resolve)
                return openat2(start, call.path, flags, 0, resolve)
            except BlockingIOError:  # EAGAIN
                if resolve & RESOLVE_CACHED:
                    if call.resolve & RESOLVE_CACHED:
                        raise Leave(Reason.FAILED, errno.EAGAIN) from None
                    raise MayWait from None
                if attempt == _ATTEMPTS - 1:
                    raise Leave(Reason.NOT_RESCUED_ROOT) from None
            except OSError as error:
                raise self._lookup_failure(call, error, resolve) from None
        raise AssertionError

    @staticmethod
    def _lookup_failure(call: OpenCall, error: OSError, resolve: int) -> Leave:
        number = error.errno or 0
        if number == errno.ENOENT and call.flags & os.O_CREAT:
            return Leave(_new_file(call))
        if number == errno.ELOOP and resolve & ~call.resolve & RESOLVE_NO_SYMLINKS:
            return Leave(Reason.NOT_RESCUED_ROOT)
        if number == errno.ELOOP and not call.resolve & RESOLVE_NO_MAGICLINKS:
            return Leave(Reason.NOT_RESCUED_LINK)
        if number == errno.EXDEV and resolve & ~call.resolve & RESOLVE_BENEATH:
            return Leave(Reason.NOT_RESCUED_ROOT)
        return _ours(error, Reason.FAILED)

    # --- whether, and how ---------------------------------------------------------------

    def _check_found(self, call: OpenCall, file: int, patient: bool) -> FileFacts:
        facts = facts_of(file)
        if stat.S_ISLNK(facts.mode):
            if call.flags & os.O_NOFOLLOW:
                raise Leave(Reason.FAILED, errno.ELOOP)
            raise Leave(_new_file(call))  # O_CREAT, and nobody knows yet what it leads to
        if not patient and facts.mount not in self._local_mounts:
            raise MayWait
        if patient:
            self._check_filesystem(file, facts)
        if call.flags & os.O_CREAT and stat.S_ISDIR(facts.mode):
            raise Leave(Reason.FAILED, errno.EISDIR)
        return facts

    def _decide_on_found(
        self,
        call: OpenCall,
        tid: int,
        thread: Standing,
        file: int,
        facts: FileFacts,
        shared: bool,
    ) -> None:
        special = not (stat.S_ISREG(facts.mode) or stat.S_ISDIR(facts.mode))
        self._decide(call, tid, thread, file, facts, shared, may_open=not special)
        if special:
            raise Leave(Reason.NOT_RESCUED_SPECIAL, errno.EPERM if call.predicted else 0)
        if call.abi is I386 and facts.size >= _LARGE and not call.flags & _O_LARGEFILE:
            raise Leave(Reason.NOT_RESCUED_LARGE)

    @staticmethod
    def _open_found(
        call: OpenCall, file: int, patient: bool, is_waiting: Callable[[], bool]
    ) -> Opened:
        flags = call.flags & ~call.clear & ~(_WITH_EFFECT & ~os.O_TRUNC)
        try:
            if flags & os.O_TRUNC and patient:  # whoever is killed while he waits truncates nothing
                os.close(_reopen(file, flags & ~os.O_TRUNC, patient))
                if not is_waiting():
                    raise ProcessLookupError
            fd = _reopen(file, flags, patient)
        except BlockingIOError:
            if patient or call.flags & os.O_NONBLOCK:
                raise Leave(Reason.FAILED, errno.EAGAIN) from None
            raise MayWait from None
        except ProcessLookupError:
            raise
        except OSError as error:
            raise _ours(error, Reason.FAILED) from None
        return Opened(fd, _name_of(fd))

    def _check_filesystem(self, file: int, facts: FileFacts) -> None:
        type_ = filesystem_type(file)
        if type_ in _PSEUDO:
            raise Leave(Reason.NOT_RESCUED_PROC)
        if type_ in _WITH_KEYS:
            raise Leave(Reason.NOT_RESCUED_USER)
        if type_ in _LOCAL and facts.mount is not None:
            self._local_mounts.add(facts.mount)

    def _decide(
        self,
        call: OpenCall,
        tid: int,
        thread: Standing,
        file: int,
        facts: FileFacts,
        shared: bool,
        may_open: bool = True,
    ) -> None:
        """Find out what the kernel would refuse the call for, as long as rules answer to it.

        Raises:
            Leave: nothing is to be taken off.
        """
        call.owner = facts.owner
        asks = False
        for number, bits, rule in call.verdict.clear_on:
            foreseen = None
            if noatime_refusal(number, bits):
                foreseen = self._impersonation.foresees_refusal(facts.owner, thread, tid, shared)
            if foreseen:
                call.clear |= bits
                call.rules.append(rule)
                call.predicted = True
            asks = asks or foreseen is None
        if asks and not shared and thread.effective:
            raise Leave(Reason.NOT_RESCUED_USER)
        while asks and may_open:
            number = _refusal(call, file)
            asks = bool(number) and call.clear_after_refusal(number)
        if not call.clear:
            raise Leave(Reason.FORESEEN if may_open or not asks else Reason.NOT_RESCUED_SPECIAL)


_DIRECTORY = os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY


def _new_file(call: OpenCall) -> Reason:
    """Return why a call that makes a file goes on: its owner is the thread, who keeps the flag."""
    return Reason.NOT_RESCUED_NEW_FILE if call.verdict.clear else Reason.FORESEEN


def _find_to_create(call: OpenCall, start: int, flags: int, resolve: int) -> int:
    """Find a file that would be made if it were not there.

    may_create_in_sticky() in fs/namei.c protects files in directories like /tmp from O_CREAT by
    others, and only from that. So such a directory is left to the kernel.
    """
    assert call.path
    parent, slash, name = call.path.rpartition(b"/")
    if not name or name in (b".", b".."):
        raise Leave(Reason.FAILED, errno.EISDIR)
    directory = openat2(start, parent + slash or b".", _DIRECTORY, 0, resolve)
    try:
        mode = facts_of(directory).mode
        if any(mode & bits == bits for bits in _STICKY):
            raise Leave(Reason.NOT_RESCUED_STICKY)
        inside = resolve & ~RESOLVE_IN_ROOT | RESOLVE_BENEATH
        return openat2(directory, name, flags | os.O_NOFOLLOW, 0, inside)
    finally:
        os.close(directory)


def _read_handle(call: OpenCall, tid: int) -> bytes:
    header = tracee.memory_or_none(tid, call.values[1], _HANDLE_HEADER)
    size = int.from_bytes(header[:4], "little") if header else 0
    if header is None or not 0 < size <= _HANDLE_MAX:
        raise Leave(Reason.FAILED)
    # Only what follows is read now: another thread may have written another size meanwhile, and
    # the kernel would read that much of our memory.
    rest = tracee.memory_or_none(tid, call.values[1] + _HANDLE_HEADER, size)
    if rest is None:
        raise Leave(Reason.FAILED, errno.EFAULT)
    return header + rest


def _find_by_handle(handle: bytes, mount: int, flags: int, resolve: int) -> int:
    if resolve & RESOLVE_CACHED:
        raise MayWait
    try:
        return open_by_handle_at(mount, handle, flags)
    except OSError as error:
        raise _ours(error, Reason.FAILED) from None


def _refusal(call: OpenCall, file: int) -> int:
    """Ask the kernel: return the errno that it refuses the call with, 0 if it does not."""
    flags = call.flags & ~call.clear
    try:
        if call.kind is Kind.SETFL:
            set_flags(file, flags)
        else:
            os.close(_reopen(file, flags & ~_WITH_EFFECT, patient=False))
    except OSError as error:
        return error.errno or 0
    return 0


def _reopen(file: int, flags: int, patient: bool) -> int:
    """Open what an O_PATH descriptor stands for, without a look at any path of it.

    Not to wait for somebody's lease (fcntl(2), F_SETLEASE), it takes O_NONBLOCK; no other
    regular file or directory is impressed by that, and the flag is taken away again.
    """
    flags &= ~os.O_NOFOLLOW
    if patient or flags & os.O_NONBLOCK:
        return os.open(_PROC % file, flags | os.O_CLOEXEC)
    fd = os.open(_PROC % file, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        set_flags(fd, flags)
    except OSError:
        os.close(fd)
        raise
    return fd


def _has_no_room(tid: int) -> bool:
    """Tell whether every descriptor that a thread may have is taken."""
    try:
        limit = tracee.limit_of_descriptors(tid)
        return sum(int(fd) < limit for fd in os.listdir(f"/proc/{tid}/fd")) >= limit
    except OSError as error:
        raise _ours(error, Reason.NOT_RESCUED_USER) from None


def set_flags(fd: int, flags: int) -> None:
    """F_SETFL of fcntl(2)."""
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & 0x7FFF_FFFF)


def _name_of(fd: int) -> bytes | None:
    try:
        return os.readlink(_PROC % fd)
    except OSError:
        return None


def _place_of(directory: bytes) -> Place:
    facts = facts_of(AT_FDCWD, directory)
    if facts.mount is None:  # before Linux 6.8 IDs are used again, but not of what is still there
        return inode_of(directory, follow=True).mount_id, facts.inode
    return facts.mount, facts.inode


def _may_climb(call: OpenCall) -> bool:
    """Tell whether a path might lead above the directory that it starts from."""
    assert call.path
    parts = call.path.split(b"/")
    if b".." in parts:
        return True
    alone = call.flags & os.O_NOFOLLOW and len(parts) == 1
    return not (alone or call.resolve & RESOLVE_NO_SYMLINKS)


def _is_inside(start: int, root: Place, patient: bool) -> bool:
    """Tell whether a directory is below (or is) the root directory of a thread.

    Where it is not, the thread can climb further than where it has started from, but not above
    its root if it comes by there.
    """
    here = os.dup(start)
    try:
        last = None
        for _ in range(_DEPTH_MAX):
            place = _place_of(_PROC % here)
            if place in (root, last):
                return place == root
            last = place
            try:
                above = openat2(here, b"..", _DIRECTORY, 0, 0 if patient else RESOLVE_CACHED)
            except BlockingIOError:
                raise MayWait from None
            os.close(here)
            here = above
    finally:
        os.close(here)
    return False


def _ours(error: OSError, otherwise: Reason) -> Leave:
    """Return why to leave a call: a shortage of ours is not what the program would meet."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return Leave(Reason.NOT_RESCUED_DESCRIPTORS)
    return Leave(otherwise, error.errno or 0)
