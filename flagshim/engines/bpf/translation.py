"""From what the kernel told of an open to the event that goes into a trace.

What the kernel does not tell (the program's file, its directories, who owns what) is looked up
afterwards, when the program is further on or gone: it is left out where it is not to be had.
"""

import errno
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from flagshim import tracee
from flagshim.credentials import Credentials, read_credentials
from flagshim.engines.bpf.program import started_in
from flagshim.engines.bpf.records import ENTERED_NO, RawOpen
from flagshim.linux.files import AT_FDCWD
from flagshim.openflags import access_mode
from flagshim.rules import MACHINE, Rule, decide, fold_path
from flagshim.syscalls import ARGUMENTS, Kind
from flagshim.trace.events import Decision, OpenEvent, Reason, text_or_bytes

_KNOWN_MAX = 4099
"""Threads remembered at most, before all are forgotten."""
_FRESH_NS = 1_000_000_000
"""How long what was looked up about a thread is taken for true."""
_GONE = "?"


class _Thread(NamedTuple):
    """What was found out about a thread, and until when that may be relied on."""

    until_ns: int
    program: str | bytes
    credentials: Credentials | None


class Translator:
    """Makes OpenEvents of RawOpens."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        """Translate.

        Args:
            rules: those of the rewriter, all of them for any program; empty if nobody rewrites.
        """
        self._rules = rules
        self._clock_offset = time.time_ns() - time.monotonic_ns()
        self._threads: dict[tuple[int, int, bytes], _Thread] = {}

    def event(self, raw: RawOpen) -> OpenEvent:
        """Translate one open."""
        kind = Kind(raw.call)
        thread = self._thread(raw)
        credentials = thread.credentials
        root = credentials.root if credentials else b"/"
        if kind is Kind.SETFL:
            resolved = tracee.fd_path(raw.tid, raw.dirfd)
        elif raw.path is None or not _is_named(kind, raw):
            resolved = None
        else:
            resolved = tracee.absolute_path(raw.tid, AT_FDCWD, raw.path, root)
        refused = -raw.result in (errno.EPERM, errno.EACCES)
        failed = raw.result < 0
        before = raw.flags | raw.cleared
        rule, reason = self._judge(raw, before, resolved)
        return OpenEvent(
            raw.time_ns + self._clock_offset,
            raw.tid,
            raw.pid,
            thread.program,
            ARGUMENTS[kind].syscall,
            MACHINE,
            None if raw.path is None else text_or_bytes(raw.path),
            None if resolved is None else text_or_bytes(resolved),
            "-" if kind is Kind.SETFL else access_mode(before),
            before,
            raw.flags,
            (Decision.CLEARED if raw.cleared else Decision.KEPT).value,
            rule,
            reason.value,
            _owner(kind, raw) if refused and credentials and credentials.shares_view else None,
            credentials.fsuid if credentials else raw.uid,
            None if failed else raw.result,
            errno.errorcode.get(-raw.result, str(-raw.result)) if failed else None,
            1,
        )

    def _judge(
        self, raw: RawOpen, before: int, resolved: bytes | None
    ) -> tuple[str | None, Reason]:
        """Return the rule that had flags cleared, and why the flags are as they are."""
        if not self._rules:
            return None, Reason.NOT_BEGUN if raw.entered == ENTERED_NO else Reason.WATCHED
        folded = fold_path(resolved) if resolved and resolved.startswith(b"/") else None
        if raw.cleared:
            return decide(self._rules, raw.cleared, folded).rule, Reason.ALWAYS
        matched = decide(self._rules, before, folded).matched
        return None, Reason.OUT_OF_REACH if matched else Reason.NO_RULE

    def _thread(self, raw: RawOpen) -> _Thread:
        key = (raw.tid, raw.uid, raw.comm)
        known = self._threads.get(key)
        if known is not None and raw.time_ns < known.until_ns:
            return known
        try:
            credentials = read_credentials(raw.tid, started_in())
        except OSError:
            credentials = None
        program = text_or_bytes(tracee.program_name(raw.tid))
        if program == _GONE:
            program = known.program if known else text_or_bytes(raw.comm)
        thread = _Thread(time.monotonic_ns() + _FRESH_NS, program, credentials)
        if len(self._threads) >= _KNOWN_MAX:
            self._threads.clear()
        self._threads[key] = thread
        return thread


def _owner(kind: Kind, raw: RawOpen) -> int | None:
    """Return the owner of a file that was refused, as far as the kernel has it at hand."""
    if kind is Kind.SETFL:
        return tracee.fd_owner(raw.tid, raw.dirfd)
    if raw.path is None or not _is_named(kind, raw):
        return None
    follow = not raw.flags & os.O_NOFOLLOW
    return tracee.owner_foreseen(raw.tid, AT_FDCWD, raw.path, follow)


def _is_named(kind: Kind, raw: RawOpen) -> bool:
    """Tell whether the path still means what it meant.

    Not where it starts from a descriptor: QEMU's 9p server has one for each step of a walk, and
    by now its number may be another directory's.
    """
    from_descriptor = kind in (Kind.OPENAT, Kind.OPENAT2) and raw.dirfd != AT_FDCWD
    return not from_descriptor or (raw.path or b"").startswith(b"/")
