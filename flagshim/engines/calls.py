"""One call with open flags: read from a thread, put to the rules, written down as an event.

What every engine does that sees calls before the kernel does; how a call is held and answered
is each engine's own.
"""

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flagshim import tracee
from flagshim.engines.sink import BlindSpots
from flagshim.linux.files import AT_FDCWD
from flagshim.linux.memory import read_memory
from flagshim.openflags import access_mode
from flagshim.rules import Rule, Verdict, decide, flag_bits, fold_path
from flagshim.syscalls import (
    ABI_BY_AUDIT_ARCH,
    ARGUMENTS,
    OPEN_HOW_MIN,
    X32_BIT,
    Abi,
    Arguments,
    Kind,
)
from flagshim.trace.events import Decision, OpenEvent, Reason, text_or_bytes

_PAGE = 4096

CallKey = tuple[int, ...]
"""Instruction pointer, stack pointer, number and arguments of a call.

The same call made again by the kernel or by us has the same key; one that a signal
handler makes in between has another stack pointer.
"""


@dataclass(slots=True)
class OpenCall:
    """A call that carries a flag of interest, from its first stop to its final result."""

    key: CallKey
    kind: Kind
    abi: Abi
    arguments: Arguments
    values: CallKey
    """The six arguments, as they were in the registers."""
    time_ns: int
    flags: int
    mode: int
    """Of open_how; 0 for other calls, whose mode is nobody's business here."""
    resolve: int
    """RESOLVE_* of openat2(2); 0 for other calls."""
    path: bytes | None
    full: bytes | None
    """`path`, made absolute; what the descriptor is open on for F_SETFL."""
    verdict: Verdict
    predicted: bool = False
    """Whether `clear` holds bits whose refusal was foreseen."""
    owner: int | None = None
    clear: int = 0
    """Bits to take off at the next try."""
    cleared: int = 0
    """Bits taken off at the last try."""
    rules: list[str] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    """Errnos of the tries the kernel refused."""
    last_error: str | None = None
    """What the program will have seen if the call is not made again."""
    tries: int = 0
    borrowed: list[tuple[int, bytes]] = field(default_factory=list)
    """(address, former content) of tracee memory to put back when the call returns."""

    @property
    def dirfd(self) -> int:
        """Where a relative path starts, or AT_FDCWD."""
        position = self.arguments.dirfd
        return AT_FDCWD if position is None else signed(self.values[position])

    def clear_after_refusal(self, number: int) -> bool:
        """Move what rules say of a refusal to `clear`; False if they say nothing (more).

        Args:
            number: the errno that the kernel refused the call with.
        """
        found = False
        for refusal, bits, rule in self.verdict.clear_on:
            if refusal == number and not self.clear & bits:
                self.clear |= bits
                self.rules.append(rule)
                found = True
        if found:
            self.refusals.append(number)
        return found


@dataclass(slots=True)
class Process:
    """What the threads of a thread group have in common."""

    pid: int
    program: str | bytes
    """Its name; bytes where that is not UTF-8."""
    rules: Sequence[Rule]
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """By flags, where no rule asks for the path."""


class CallReader:
    """Decodes calls, and asks the rules about them."""

    def __init__(self, rules: Sequence[Rule], sink: BlindSpots) -> None:
        self._rules = rules
        self._mask = sum(flag_bits(rules))
        self._sink = sink

    def process(self, pid: int, program: bytes) -> Process:
        """Return a thread group that runs a program, with the rules that are for it."""
        rules = [rule for rule in self._rules if rule.matches_program(program)]
        return Process(pid, text_or_bytes(program), rules)

    def read(
        self,
        tid: int,
        kind: Kind,
        audit_arch: int,
        key: CallKey,
        process: Process,
        root: Callable[[], bytes],
    ) -> OpenCall | None:
        """Decode a call and decide on it; None for one that is none of our business.

        Args:
            tid: the thread that makes it, and stands still.
            kind: what its number means.
            audit_arch: AUDIT_ARCH_* of the way it came by.
            key: its number and arguments among it.
            process: what the thread belongs to.
            root: asked for the thread's root directory once the call is of interest.

        Raises:
            ProcessLookupError: the thread was killed meanwhile.
        """
        abi = ABI_BY_AUDIT_ARCH.get(audit_arch)
        if abi is None or key[2] & X32_BIT:
            self._blind_spot(process, "x32" if abi else "unknown ABI")
            return None
        if not process.rules:
            return None
        time_ns = time.time_ns()
        arguments = ARGUMENTS[kind]
        values = key[3:9]
        mode = resolve = 0
        on_already: int | None = 0
        if kind is Kind.OPENAT2:
            how = self._read_open_how(tid, process, values)
            if how is None:
                return None
            flags, mode, resolve = how
        else:
            flags = values[arguments.flags] & 0xFFFF_FFFF
        if flags & os.O_PATH:  # openat ignores what we clear, openat2 refuses it, as it should
            return None
        wanted = flags & self._mask
        if kind is Kind.SETFL:
            if values[1] & 0xFFFF_FFFF != fcntl.F_SETFL:
                return None
            # fs/fcntl.c checks a flag only when it goes from off to on; clearing one that is
            # on would take it off the description for everybody who shares it.
            on_already = tracee.fd_flags(tid, signed(values[0]))
            wanted &= ~(on_already or 0)
        if not wanted:
            return None

        start = root()
        path = full = None
        if arguments.path is not None:
            path = tracee.read_path(tid, values[arguments.path])
            if path is not None:
                dirfd = AT_FDCWD if arguments.dirfd is None else signed(values[arguments.dirfd])
                full = tracee.absolute_path(tid, dirfd, path, start)
        elif kind is Kind.SETFL:
            full = tracee.fd_path(tid, signed(values[0]))
        verdict = process.verdicts.get(wanted)
        if verdict is None:
            folded = fold_path(full) if full is not None and full.startswith(b"/") else None
            verdict = decide(process.rules, wanted, folded)
            if not any(rule.paths for rule in process.rules):
                process.verdicts[wanted] = verdict

        call = OpenCall(
            key, kind, abi, arguments, values, time_ns, flags, mode, resolve, path, full, verdict,
            clear=0 if on_already is None else verdict.clear,
        )  # fmt: skip
        if call.clear and verdict.rule:
            call.rules.append(verdict.rule)
        return call

    def _read_open_how(
        self, tid: int, process: Process, values: Sequence[int]
    ) -> tuple[int, int, int] | None:
        """Return (flags, mode, resolve); None where the kernel will refuse the struct."""
        if not OPEN_HOW_MIN <= values[3] <= _PAGE:
            return None
        try:
            how = read_memory(tid, values[2], OPEN_HOW_MIN)
        except ProcessLookupError:
            raise
        except PermissionError:
            self._blind_spot(process, "unreadable memory")
            return None
        except OSError:
            return None
        if len(how) < OPEN_HOW_MIN:
            return None
        flags, mode, resolve = (int.from_bytes(how[n : n + 8], "little") for n in (0, 8, 16))
        return flags, mode, resolve

    def _blind_spot(self, process: Process, kind: str) -> None:
        self._sink.blind_spot(kind, process.program)


def event_of(
    call: OpenCall,
    tid: int,
    process: Process,
    fsuid: int | None,
    resolved: bytes | None,
    result: int | None,
    error: str | None,
    kept_because: Reason | None = None,
) -> OpenEvent:
    """Return the event of a call.

    Args:
        call: the call; `cleared` says what was taken off it.
        tid: the thread that made it.
        process: what that belongs to.
        fsuid: its filesystem user ID.
        resolved: path of the opened file.
        result: what a call that succeeded returned.
        error: name of the error of one that failed.
        kept_because: why nothing was taken off, where that does not follow from the rest.
    """
    if call.cleared:
        decision = Decision.CLEARED
        reason = (
            Reason.REFUSED
            if call.refusals
            else Reason.PREDICTED
            if call.predicted
            else Reason.ALWAYS
        )
    else:
        decision = Decision.KEPT
        reason = kept_because or (
            Reason.NO_RULE
            if not call.verdict.matched
            else Reason.ALLOWED
            if error is None
            else Reason.FAILED
        )
    return OpenEvent(
        call.time_ns,
        tid,
        process.pid,
        process.program,
        call.arguments.syscall,
        call.abi.name,
        None if call.path is None else text_or_bytes(call.path),
        None if resolved is None else text_or_bytes(resolved),
        "-" if call.kind is Kind.SETFL else access_mode(call.flags),
        _as_stored(call.flags),
        _as_stored(call.flags & ~call.cleared),
        decision.value,
        ",".join(dict.fromkeys(call.rules)) or None,
        reason.value,
        call.owner,
        fsuid,
        result,
        error,
        call.tries,
    )


def signed(register: int) -> int:
    """Return a register's lower half as the int a descriptor is."""
    value = register & 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def _as_stored(flags: int) -> int:
    """Fit the 64 bits of open_how.flags into SQLite's signed integers."""
    return flags - (1 << 64) if flags >> 63 else flags
