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
from flagshim.engines.notify.filesystems import Filesystems
from flagshim.engines.notify.leaving import Leave, MayWait, because_of, new_file
from flagshim.engines.notify.lookup import Lookup, read_handle
from flagshim.engines.notify.standing import CannotBe, Impersonation, Standing
from flagshim.linux.files import (
    AT_FDCWD,
    RESOLVE_CACHED,
    FileFacts,
    facts_of,
)
from flagshim.rules import noatime_refusal
from flagshim.syscalls import I386, Kind
from flagshim.trace.events import Reason

_PROC = b"/proc/self/fd/%d"
_INT_MAX = 0x7FFF_FFFF
_REOPENED = ~os.O_NOFOLLOW & _INT_MAX  # open(2) does not look at other bits
_NO_WAITING = os.O_NONBLOCK | os.O_CLOEXEC
_LARGE = 1 << 31
_O_LARGEFILE = 0o100000
_O_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
_WITH_EFFECT = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY


class Opened(NamedTuple):
    """A file that was opened for a thread."""

    fd: int
    path: bytes | None


class Opener:
    """Opens files for threads; and sets flags of descriptors they have."""

    def __init__(
        self, lookup: Lookup, impersonation: Impersonation, filesystems: Filesystems
    ) -> None:
        self._lookup = lookup
        self._impersonation = impersonation
        self._filesystems = filesystems

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
            shares_root: whether it shares our root.
            is_waiting: tells whether the thread is still the one with that ID.
            patient: whether to go on where a filesystem may have to be waited for.

        Raises:
            Leave: the call would not be refused, or not only for that, or must not be helped.
            MayWait: only if not patient.
            ProcessLookupError: the thread was killed meanwhile.
        """
        if call.flags & _O_TMPFILE or (call.flags & os.O_CREAT and call.flags & os.O_EXCL):
            raise Leave(new_file(call))
        if call.flags & os.O_CREAT and call.flags & os.O_DIRECTORY:
            raise Leave(Reason.FAILED, errno.EINVAL)  # commit 43b450632676, Linux 6.4
        if call.kind is Kind.OPENAT2:
            self._lookup.check_how(call, tid)
        who = self._impersonation
        if not who.can_be(thread, tid):
            raise Leave(Reason.NOT_RESCUED_USER)
        shared = who.shares_capabilities(thread, tid)
        if call.flags & os.O_TRUNC and _has_no_room(tid):  # the kernel looks for that first, too
            raise Leave(Reason.FAILED, errno.EMFILE)
        handle = read_handle(call, tid) if call.kind is Kind.OPEN_BY_HANDLE_AT else None
        start, resolve = self._lookup.start(call, tid, shares_root, patient)
        try:
            if not patient:
                resolve |= RESOLVE_CACHED
            # Nothing but O_TRUNC would be for good if all this were of another thread's by now.
            if call.flags & os.O_TRUNC and not is_waiting():
                raise ProcessLookupError
            try:
                who.become(thread, shared)
                file = self._lookup.find(call, start, resolve, handle)
                try:
                    facts = self._check_found(call, file, patient)
                    if stat.S_ISLNK(facts.mode):
                        file = self._follow(call, file, start, resolve)
                        facts = self._check_found(call, file, patient)
                        self._decide_on_found(call, tid, thread, file, facts, shared)
                        raise Leave(
                            Reason.NOT_RESCUED_CREATE_LINK, errno.EPERM if call.predicted else 0
                        )
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
        duplicate = self._lookup.duplicate(tid, fd)
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
            return name_of(duplicate)
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
            duplicate = self._lookup.duplicate(tid, fd)
            if os.lseek(duplicate, 0, os.SEEK_CUR) == offset:
                os.lseek(duplicate, 0, os.SEEK_SET)
            os.close(duplicate)

    # --- whether, and how ---------------------------------------------------------------

    def _check_found(self, call: OpenCall, file: int, patient: bool) -> FileFacts:
        try:
            facts = facts_of(file)
            if stat.S_ISLNK(facts.mode):
                return facts
            self._filesystems.check(file, facts, patient)
        except OSError as error:  # its server is gone, as the open will find
            raise because_of(error, Reason.FAILED) from None
        if call.flags & os.O_CREAT and stat.S_ISDIR(facts.mode):
            raise Leave(Reason.FAILED, errno.EISDIR)
        return facts

    def _follow(self, call: OpenCall, link: int, start: int, resolve: int) -> int:
        """Find what O_CREAT on a link leads to, so that it is known whether that is refused.

        It is not opened: nobody has looked whether it may be, in the directory that it is in
        (protected_regular).
        """
        if call.flags & os.O_NOFOLLOW:
            raise Leave(Reason.FAILED, errno.ELOOP)
        target = self._lookup.find(call, start, resolve, may_create=False)
        os.dup2(target, link, inheritable=False)
        os.close(target)
        return link

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
                os.close(reopen(file, flags & ~os.O_TRUNC, patient))
                if not is_waiting():
                    raise ProcessLookupError
            fd = reopen(file, flags, patient)
        except BlockingIOError:
            if patient or call.flags & os.O_NONBLOCK:
                refusals = [errno.EPERM] if call.predicted else call.refusals
                raise Leave(Reason.FAILED, (refusals or [errno.EAGAIN])[-1]) from None
            raise MayWait from None
        except ProcessLookupError:
            raise
        except OSError as error:
            raise because_of(error, Reason.FAILED) from None
        return Opened(fd, name_of(fd))

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


def _refusal(call: OpenCall, file: int) -> int:
    """Ask the kernel: return the errno that it refuses the call with, 0 if it does not."""
    flags = call.flags & ~call.clear
    try:
        if call.kind is Kind.SETFL:
            set_flags(file, flags)
        else:
            os.close(reopen(file, flags & ~_WITH_EFFECT, patient=False))
    except OSError as error:
        return error.errno or 0
    return 0


def reopen(file: int, flags: int, patient: bool) -> int:
    """Open what an O_PATH descriptor stands for, without a look at any path of it.

    Not to wait for somebody's lease (fcntl(2), F_SETLEASE), it takes O_NONBLOCK; no other
    regular file or directory is impressed by that, and the flag is taken away again.
    """
    flags &= _REOPENED
    if patient or flags & os.O_NONBLOCK:
        return os.open(_PROC % file, flags | os.O_CLOEXEC)
    fd = os.open(_PROC % file, flags | _NO_WAITING)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
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
        raise because_of(error, Reason.NOT_RESCUED_USER) from None


def set_flags(fd: int, flags: int) -> None:
    """F_SETFL of fcntl(2)."""
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & _INT_MAX)


def name_of(fd: int) -> bytes | None:
    """Return the path of an open file of ours."""
    try:
        return os.readlink(_PROC % fd)
    except OSError:
        return None
