"""Finding the file that a call names: from where the thread is, without opening anything."""

import errno
import os
import stat

from flagshim import tracee
from flagshim.engines.calls import OpenCall, signed
from flagshim.engines.notify.leaving import Leave, MayWait, because_of, new_file
from flagshim.engines.notify.standing import Standings
from flagshim.linux.files import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    facts_of,
    inode_of,
    open_by_handle_at,
    openat2,
)
from flagshim.linux.pidfds import duplicate_of
from flagshim.syscalls import OPEN_HOW_MIN, Kind
from flagshim.trace.events import Reason

_PROC = b"/proc/self/fd/%d"
_ROOT = b"/proc/%d/root"
DIRECTORY = os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY
_STICKY = stat.S_ISVTX | stat.S_IWOTH, stat.S_ISVTX | stat.S_IWGRP
_ATTEMPTS = 7
"""How often a path is looked up anew that somebody renames meanwhile (openat2(2), EAGAIN)."""
_HANDLE_HEADER, _HANDLE_MAX = 8, 128
_DEPTH_MAX = 101
"""How far below a thread's root directory a path may begin that could lead above that."""

Place = tuple[int, int]
"""Mount ID and inode number of a directory; no other has them as long as it is there."""


class Lookup:
    """Finds files for threads."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings
        self.root = _place_of(b"/")

    def start(self, call: OpenCall, tid: int, same_root: bool, patient: bool) -> tuple[int, int]:
        """Return a descriptor that the path starts from, or AT_FDCWD, and how to resolve it.

        Args:
            call: the call.
            tid: the thread.
            same_root: whether it shares our root.
            patient: whether to go on where a filesystem may have to be waited for.

        Raises:
            Leave, MayWait, ProcessLookupError: as Opener.open does.
        """
        resolve = call.resolve | RESOLVE_NO_MAGICLINKS
        if call.kind is Kind.OPEN_BY_HANDLE_AT:
            return self.duplicate(tid, signed(call.values[0])), resolve
        if not call.path:
            raise Leave(Reason.FAILED if call.path == b"" else Reason.NOT_RESCUED_MEMORY)
        try:
            if call.path.startswith(b"/") and not call.resolve & RESOLVE_IN_ROOT:
                if call.resolve & RESOLVE_BENEATH:
                    raise Leave(Reason.FAILED, errno.EXDEV)
                if same_root:
                    return AT_FDCWD, resolve
                return os.open(_ROOT % tid, DIRECTORY), resolve | RESOLVE_IN_ROOT
            start = os.open(tracee.directory_of(tid, call.dirfd), DIRECTORY)
            if not same_root and not call.resolve & (RESOLVE_IN_ROOT | RESOLVE_BENEATH):
                resolve |= RESOLVE_BENEATH  # what leads out of there would lead into our root
                try:
                    if _may_climb(call) and not _is_inside(start, _place_of(_ROOT % tid), patient):
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
            raise because_of(error, Reason.NOT_RESCUED_USER) from None

    def shares_root(self, tid: int) -> bool:
        """Tell whether an absolute path means to a thread what it means to us."""
        try:
            return _place_of(_ROOT % tid) == self.root
        except OSError:  # a thread that is gone, or that we may not look into
            return False

    def duplicate(self, tid: int, fd: int) -> int:
        """Return a duplicate of a descriptor of a thread.

        Raises:
            Leave: there is none, or we may not have it.
            ProcessLookupError: the thread is gone.
        """
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
            raise because_of(error, Reason.NOT_RESCUED_USER) from None

    @staticmethod
    def check_how(call: OpenCall, tid: int) -> None:
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

    def find(
        self,
        call: OpenCall,
        start: int,
        resolve: int,
        handle: bytes | None = None,
        may_create: bool = True,
    ) -> int:
        """Return an O_PATH descriptor of the file that a call names, as whom we are just now.

        Args:
            call: the call.
            start: where it starts.
            resolve: RESOLVE_*.
            handle: of the file, for open_by_handle_at(2).
            may_create: whether O_CREAT counts; then a symbolic link is not followed.

        Raises:
            Leave, MayWait: as Opener.open does.
        """
        flags = flags_to_find(call.flags)
        if handle is not None:
            return _find_by_handle(handle, start, flags, resolve)
        assert call.path
        for attempt in range(_ATTEMPTS):
            try:
                if call.flags & os.O_CREAT and may_create:
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
            return Leave(new_file(call))
        if number == errno.ELOOP and resolve & ~call.resolve & RESOLVE_NO_SYMLINKS:
            return Leave(Reason.NOT_RESCUED_ROOT)
        if number == errno.ELOOP and not call.resolve & RESOLVE_NO_MAGICLINKS:
            return Leave(Reason.NOT_RESCUED_LINK)
        if number == errno.EXDEV and resolve & ~call.resolve & RESOLVE_BENEATH:
            return Leave(Reason.NOT_RESCUED_ROOT)
        return because_of(error, Reason.FAILED)


def flags_to_find(flags: int) -> int:
    """Return how to find the file of a call that has flags, without opening it."""
    return os.O_PATH | os.O_CLOEXEC | flags & (os.O_NOFOLLOW | os.O_DIRECTORY)


def _find_to_create(call: OpenCall, start: int, flags: int, resolve: int) -> int:
    """Find a file that would be made if it were not there.

    may_create_in_sticky() in fs/namei.c protects files in directories like /tmp from O_CREAT by
    others, and only from that. So such a directory is left to the kernel.
    """
    assert call.path
    parent, slash, name = call.path.rpartition(b"/")
    if not name or name in (b".", b".."):
        raise Leave(Reason.FAILED, errno.EISDIR)
    directory = openat2(start, parent + slash or b".", DIRECTORY, 0, resolve)
    try:
        mode = facts_of(directory).mode
        if any(mode & bits == bits for bits in _STICKY):
            raise Leave(Reason.NOT_RESCUED_STICKY)
        inside = resolve & ~RESOLVE_IN_ROOT | RESOLVE_BENEATH
        return openat2(directory, name, flags | os.O_NOFOLLOW, 0, inside)
    finally:
        os.close(directory)


def read_handle(call: OpenCall, tid: int) -> bytes:
    """Read the struct file_handle of open_by_handle_at(2) from a thread, once.

    Raises:
        Leave: the kernel will refuse it.
    """
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
        raise because_of(error, Reason.FAILED) from None


def _place_of(directory: bytes) -> Place:
    facts = facts_of(AT_FDCWD, directory)
    mount = facts.mount
    if mount is None:  # before Linux 6.8 IDs are used again, but not of what is still there
        mount = inode_of(directory, follow=True).mount_id
    return mount, facts.inode


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
                above = openat2(here, b"..", DIRECTORY, 0, 0 if patient else RESOLVE_CACHED)
            except BlockingIOError:
                raise MayWait from None
            os.close(here)
            here = above
    finally:
        os.close(here)
    return False
