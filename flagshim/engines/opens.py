"""One call with open flags, from its seccomp stop to its syscall-exit stop."""

import errno
import fcntl
import os
import time
from collections.abc import Sequence

from flagshim import tracee
from flagshim.credentials import Credentials, mount_namespace_of, read_credentials
from flagshim.engines.clones import keep_traced
from flagshim.engines.registers import INSTRUCTION_POINTER, NUMBER, RESULT, poke_argument
from flagshim.engines.sink import Sink
from flagshim.engines.threads import OpenCall, Process, Thread
from flagshim.linux import (
    AT_FDCWD,
    SyscallEntry,
    ptrace_entry_info,
    ptrace_exit_info,
    ptrace_poke_user,
    read_memory,
)
from flagshim.openflags import access_mode
from flagshim.rules import Rule, decide, flag_bits, fold_path, noatime_refusal
from flagshim.seccomp import kind_of, numbered_calls
from flagshim.syscalls import (
    ABI_BY_AUDIT_ARCH,
    ARGUMENTS,
    OPEN_HOW_MIN,
    RED_ZONE,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_SET_MODE_FILTER,
    X32_BIT,
    Kind,
)
from flagshim.trace.events import Decision, OpenEvent, Reason, text_or_bytes

_ERESTARTSYS, _ERESTART_RESTARTBLOCK = 512, 516  # include/linux/errno.h
_PAGE = 4096
_RESOLVE_IN_ROOT = 0x10
_OWN_PROC = (b"/proc/", b"/dev/fd/", b"/dev/std")
"""Where a path means something else to each process that uses it."""
_SUSPENDED_MAX = 17


class OpenHandler:
    """Applies rules to the calls of all tracees, and records what came of them."""

    def __init__(self, rules: Sequence[Rule], sink: Sink, follows_standing: bool) -> None:
        """Apply rules.

        Args:
            rules: in order.
            sink: where events go.
            follows_standing: whether we hear of calls of Kind.STANDING. If not, who a thread is
                gets looked up at every call.
        """
        self._rules = rules
        self._follows_standing = follows_standing
        self._mask = sum(flag_bits(rules))
        self._sink = sink
        self._mount_namespace = mount_namespace_of("self")
        self._processes: dict[int, Process] = {}
        self._standing = 0
        self._calls = numbered_calls()

    # --- stops ------------------------------------------------------------------------

    def entered(self, thread: Thread) -> bool:
        """Handle a seccomp stop. True asks for a stop when the call returns.

        Raises:
            ProcessLookupError: the thread was killed meanwhile.
        """
        info = ptrace_entry_info(thread.tid)
        kind = self.kind_of_stop(info)
        if kind is None:
            refuse(thread.tid)
            return False
        return self.entered_call(thread, kind, info)

    def kind_of_stop(self, info: SyscallEntry) -> Kind | None:
        """Return what a seccomp stop is about; None if a filter of the program's own made it."""
        kind = kind_of(info[11])
        return kind if self._calls.get((info[1], info[4] & ~X32_BIT)) is kind else None

    def entered_call(self, thread: Thread, kind: Kind, info: SyscallEntry) -> bool:
        """Handle a stop at the beginning of a call. True asks for a stop when it returns.

        Raises:
            ProcessLookupError: the thread was killed meanwhile.
        """
        if kind is Kind.STANDING:
            # Who everybody is gets looked up anew at their next call: threads share a root.
            self._standing += 1
            thread.changing = True
            return True
        if kind is Kind.IO_URING:
            self._blind_spot(thread, "io_uring")
            return False
        if kind is Kind.LISTENER:
            if info[5] == SECCOMP_SET_MODE_FILTER and info[6] & SECCOMP_FILTER_FLAG_NEW_LISTENER:
                self._blind_spot(thread, "seccomp listener")
            return False
        if kind in (Kind.CLONE, Kind.CLONE3):
            abi = ABI_BY_AUDIT_ARCH[info[1]]
            thread.put_back = keep_traced(thread.tid, kind, abi, info[5:11])
            return thread.put_back is not None
        if not self._follows_standing:
            self._standing += 1
        call = thread.suspended.pop(info[2:11], None)
        if call is not None and not self._is_same(thread.tid, call):
            self._sink.record(self._event(thread, call, None, None, call.last_error))
            call = None
        if call is None:
            call = self._first_look(thread, kind, info)
            if call is None:
                return False
        call.tries += 1
        call.cleared = 0
        if call.clear:
            try:
                self._strip(thread.tid, call)
                call.cleared = call.clear
            except ProcessLookupError:
                raise
            except OSError:  # shared memory that is not writable: the call goes as it is
                self._blind_spot(thread, "unwritable memory")
        thread.call = call
        return True

    def exited(self, thread: Thread) -> OpenEvent | None:
        """Handle a syscall-exit stop; None if the call is to be made once more, or was no open.

        Raises:
            ProcessLookupError: the thread was killed meanwhile.
        """
        if thread.changing:  # what was looked up meanwhile may be of before
            self._standing += 1
            thread.changing = False
        if thread.put_back is not None:
            thread.put_back()
            thread.put_back = None
        call = thread.call
        if call is None:
            return None
        result = ptrace_exit_info(thread.tid)
        self._put_back(thread.tid, call)
        thread.call = None
        if -_ERESTART_RESTARTBLOCK <= result <= -_ERESTARTSYS:
            # The kernel makes the call again, or turns this into EINTR; the next stop tells.
            self._suspend(thread, call, errno.EINTR)
            return None
        if result < 0 and self._clear_after_refusal(call, -result):
            self._repeat(thread, call)
            return None
        if result == -errno.EEXIST and call.refusals and call.flags & os.O_EXCL:
            # The refused try had created the file (may_open() comes after that): EEXIST is
            # of our making, the refusal is what the program would have seen.
            result = -call.refusals[0]
            ptrace_poke_user(thread.tid, RESULT, result)
        return self._finished(thread, call, result)

    def gone(self, thread: Thread) -> None:
        """Record what a thread that exists no more, or runs another program, left unfinished."""
        if thread.call is not None:
            self._sink.record(self._event(thread, thread.call, None, None, None))
            thread.call = None
        for call in thread.suspended.values():
            self._sink.record(self._event(thread, call, None, None, call.last_error))
        thread.suspended.clear()

    def process_gone(self, pid: int) -> None:
        """Forget a thread group that ended, or became another program."""
        self._processes.pop(pid, None)

    # --- first look -------------------------------------------------------------------

    def _first_look(self, thread: Thread, kind: Kind, info: SyscallEntry) -> OpenCall | None:
        """Decode a call and decide on it; None for one that is none of our business."""
        tid = thread.tid
        abi = ABI_BY_AUDIT_ARCH.get(info[1])
        if abi is None or info[4] & X32_BIT:
            self._blind_spot(thread, "x32" if abi else "unknown ABI")
            return None
        process = self._process(thread)
        if not process.rules:
            return None
        time_ns = time.time_ns()
        arguments = ARGUMENTS[kind]
        values = info[5:11]
        resolve = 0
        on_already: int | None = 0
        if kind is Kind.OPENAT2:
            how = self._read_open_how(thread, values)
            if how is None:
                return None
            flags, resolve = how
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
            on_already = tracee.fd_flags(tid, _signed(values[0]))
            wanted &= ~(on_already or 0)
        if not wanted:
            return None

        self._credentials(thread)  # anew after a chroot: paths start from its root
        path = full = None
        if arguments.path is not None:
            path = tracee.read_path(tid, values[arguments.path])
            if path is not None:
                full = self._absolute_path(thread, kind, values, path)
        elif kind is Kind.SETFL:
            full = tracee.fd_path(tid, _signed(values[0]))
        verdict = process.verdicts.get(wanted)
        if verdict is None:
            folded = fold_path(full) if full is not None and full.startswith(b"/") else None
            verdict = decide(process.rules, wanted, folded)
            if not any(rule.paths for rule in process.rules):
                process.verdicts[wanted] = verdict

        call = OpenCall(
            info[2:11], kind, abi, arguments, values, time_ns, flags, path, verdict,
            clear=0 if on_already is None else verdict.clear,
        )  # fmt: skip
        if call.clear and verdict.rule:
            call.rules.append(verdict.rule)
        ordinary = path and not resolve & _RESOLVE_IN_ROOT
        self._predict(thread, call, full if ordinary else None)
        return call

    def _is_same(self, tid: int, call: OpenCall) -> bool:
        """Tell whether a call with the key of a former one is that one, made again."""
        position = call.arguments.path
        if position is not None and tracee.read_path(tid, call.values[position]) != call.path:
            return False
        if call.kind is Kind.OPENAT2:
            flags = tracee.memory_or_none(tid, call.values[call.arguments.flags], 8)
            return flags == call.flags.to_bytes(8, "little")
        return True

    def _predict(self, thread: Thread, call: OpenCall, full: bytes | None) -> None:
        """Clear O_NOATIME at once where its refusal is certain, which saves two stops.

        Args:
            thread: that makes the call.
            call: may get bits to clear.
            full: its path, made absolute; None for one that starts elsewhere than paths do.
        """
        credentials = self._credentials(thread)
        if credentials.cap_fowner:
            return
        for entry in call.verdict.clear_on:
            if noatime_refusal(entry[0], entry[1]):
                break
        else:
            return
        if call.kind is Kind.SETFL:
            call.owner = tracee.fd_owner(thread.tid, _signed(call.values[0]))
        elif (
            full is not None
            and call.path is not None
            and credentials.shares_view
            and not full.startswith(_OWN_PROC)
            and call.flags & os.O_TMPFILE != os.O_TMPFILE  # a new file, and the thread's own
        ):
            call.owner = tracee.owner_foreseen(
                thread.tid,
                _dirfd(call.kind, call.values),
                call.path,
                follow=not call.flags & os.O_NOFOLLOW,
            )
        if call.owner is not None and credentials.would_be_refused(call.owner):
            call.clear |= entry[1]
            call.rules.append(entry[2])
            call.predicted = True

    def _read_open_how(self, thread: Thread, values: Sequence[int]) -> tuple[int, int] | None:
        """Return (flags, resolve) of openat2(2); None where the kernel will refuse the struct."""
        if not OPEN_HOW_MIN <= values[3] <= _PAGE:
            return None
        try:
            how = read_memory(thread.tid, values[2], OPEN_HOW_MIN)
        except ProcessLookupError:
            raise
        except PermissionError:
            self._blind_spot(thread, "unreadable memory")
            return None
        except OSError:
            return None
        if len(how) < OPEN_HOW_MIN:
            return None
        return int.from_bytes(how[:8], "little"), int.from_bytes(how[16:24], "little")

    # --- changing a call --------------------------------------------------------------

    def _strip(self, tid: int, call: OpenCall) -> None:
        position = call.arguments.flags
        if call.kind is not Kind.OPENAT2:
            poke_argument(tid, call.abi, position, call.values[position] & ~call.clear)
            return
        # struct open_how may be shared with other threads, or read-only: lend the kernel a
        # copy below the stack, where nothing lives, as a signal frame would be laid.
        address, size = call.values[position], call.values[3]
        flags = (call.flags & ~call.clear).to_bytes(8, "little")
        scratch = (call.key[1] - RED_ZONE - OPEN_HOW_MIN) & ~15
        how = tracee.memory_or_none(tid, address, size)
        # A kernel takes what follows the part it knows only if it is zero, and then as if it
        # were not there. int $0x80 in a 64-bit program has 32 bits for an address.
        if how and not any(how[OPEN_HOW_MIN:]) and scratch >> call.abi.address_bits == 0:
            former = tracee.memory_or_none(tid, scratch, OPEN_HOW_MIN)
            if former and tracee.try_write(tid, scratch, flags + how[8:OPEN_HOW_MIN]):
                call.borrowed.append((scratch, former))
                poke_argument(tid, call.abi, position, scratch)
                poke_argument(tid, call.abi, position + 1, OPEN_HOW_MIN)
                return
        tracee.force_memory(tid, address, flags)
        call.borrowed.append((address, call.flags.to_bytes(8, "little")))

    def _put_back(self, tid: int, call: OpenCall) -> None:
        """Have registers and memory as the program left them; the ABI promises them unchanged."""
        if not call.cleared:
            return
        position = call.arguments.flags
        poke_argument(tid, call.abi, position, call.values[position])
        if call.kind is Kind.OPENAT2:
            poke_argument(tid, call.abi, position + 1, call.values[position + 1])
        for address, former in call.borrowed:
            tracee.force_memory(tid, address, former)
        call.borrowed.clear()

    @staticmethod
    def _clear_after_refusal(call: OpenCall, number: int) -> bool:
        """Move what rules say of this refusal to `clear`; False if they say nothing (more)."""
        found = False
        for refusal, bits, rule in call.verdict.clear_on:
            if refusal == number and not call.clear & bits:
                call.clear |= bits
                call.rules.append(rule)
                found = True
        if found:
            call.refusals.append(number)
        return found

    def _repeat(self, thread: Thread, call: OpenCall) -> None:
        """Have the thread run its system call instruction again.

        It traps again, with its arguments as they were. A signal handler may run first:
        `suspended` finds the call again by its key.
        """
        instruction, number = call.key[0], call.key[2]
        ptrace_poke_user(thread.tid, INSTRUCTION_POINTER, instruction - call.abi.instruction_size)
        ptrace_poke_user(thread.tid, RESULT, number)
        self._suspend(thread, call, call.refusals[-1])

    def _suspend(self, thread: Thread, call: OpenCall, number: int) -> None:
        call.last_error = errno.errorcode[number]
        thread.suspended[call.key] = call
        if len(thread.suspended) > _SUSPENDED_MAX:  # left by longjmp(3) out of handlers
            oldest = thread.suspended.pop(next(iter(thread.suspended)))
            self._sink.record(self._event(thread, oldest, None, None, oldest.last_error))

    # --- recording --------------------------------------------------------------------

    def _finished(self, thread: Thread, call: OpenCall, result: int) -> OpenEvent:
        tid = thread.tid
        if result < 0:
            resolved = None
            if call.path is not None:
                resolved = self._absolute_path(thread, call.kind, call.values, call.path)
            elif call.kind is Kind.SETFL:
                resolved = tracee.fd_path(tid, _signed(call.values[0]))
            name = errno.errorcode.get(-result, str(-result))
            return self._event(thread, call, resolved, None, name)
        fd = _signed(call.values[0]) if call.kind is Kind.SETFL else result
        if call.owner is None:
            call.owner = tracee.fd_owner(tid, fd)
        return self._event(thread, call, tracee.fd_path(tid, fd), result, None)

    def _event(
        self,
        thread: Thread,
        call: OpenCall,
        resolved: bytes | None,
        result: int | None,
        error: str | None,
    ) -> OpenEvent:
        process = self._process(thread)
        credentials = thread.credentials
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
            reason = (
                Reason.NO_RULE
                if not call.verdict.matched
                else Reason.ALLOWED
                if error is None
                else Reason.FAILED
            )
        return OpenEvent(
            call.time_ns,
            thread.tid,
            process.pid,
            text_or_bytes(process.program),
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
            credentials.fsuid if credentials else None,
            result,
            error,
            call.tries,
        )

    @staticmethod
    def _absolute_path(thread: Thread, kind: Kind, values: Sequence[int], path: bytes) -> bytes:
        root = thread.credentials.root if thread.credentials else b"/"
        return tracee.absolute_path(thread.tid, _dirfd(kind, values), path, root)

    # --- who ----------------------------------------------------------------------------

    def _credentials(self, thread: Thread) -> Credentials:
        if thread.credentials is None or thread.standing != self._standing:
            try:
                thread.credentials = read_credentials(thread.tid, self._mount_namespace)
            except (FileNotFoundError, ProcessLookupError):
                raise ProcessLookupError from None
            except OSError:  # no descriptor or no memory left: nothing to go by, but go on
                return Credentials(thread.tid, None, True, b"/", False)
            thread.standing = self._standing
        return thread.credentials

    def _process(self, thread: Thread) -> Process:
        if thread.process is None:
            pid = self._credentials(thread).pid
            process = self._processes.get(pid)
            if process is None:
                program = tracee.program_name(thread.tid)
                rules = [rule for rule in self._rules if rule.matches_program(program)]
                process = self._processes[pid] = Process(pid, program, rules)
            thread.process = process
        return thread.process

    def _blind_spot(self, thread: Thread, kind: str) -> None:
        self._sink.blind_spot(kind, text_or_bytes(self._process(thread).program))


def refuse(tid: int) -> None:
    """Have the call at a seccomp stop fail as it would without a tracer (seccomp(2), RET_TRACE)."""
    ptrace_poke_user(tid, NUMBER, -1)
    ptrace_poke_user(tid, RESULT, -errno.ENOSYS)


def _signed(register: int) -> int:
    """Return a register's lower half as the int a descriptor is."""
    value = register & 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def _dirfd(kind: Kind, values: Sequence[int]) -> int:
    position = ARGUMENTS[kind].dirfd
    return AT_FDCWD if position is None else _signed(values[position])


def _as_stored(flags: int) -> int:
    """Fit the 64 bits of open_how.flags into SQLite's signed integers."""
    return flags - (1 << 64) if flags >> 63 else flags
