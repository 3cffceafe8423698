"""One call with open flags, from its seccomp stop to its syscall-exit stop."""

import errno
import os
from collections.abc import Sequence

from flagshim import tracee
from flagshim.credentials import Credentials, mount_namespace_of, read_credentials
from flagshim.engines.calls import CallReader, OpenCall, Process, event_of, signed
from flagshim.engines.clones import keep_traced
from flagshim.engines.registers import INSTRUCTION_POINTER, NUMBER, RESULT, poke_argument
from flagshim.engines.sink import Sink
from flagshim.engines.threads import Thread
from flagshim.linux.ptrace import (
    SyscallEntry,
    ptrace_entry_info,
    ptrace_exit_info,
    ptrace_poke_user,
)
from flagshim.rules import Rule, noatime_refusal
from flagshim.seccomp import kind_of, traced_calls
from flagshim.syscalls import (
    ABI_BY_AUDIT_ARCH,
    OPEN_HOW_MIN,
    RED_ZONE,
    RESOLVE_IN_ROOT,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_SET_MODE_FILTER,
    X32_BIT,
    Kind,
)
from flagshim.trace.events import OpenEvent

_ERESTARTSYS, _ERESTART_RESTARTBLOCK = 512, 516  # include/linux/errno.h
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
        self._reader = CallReader(rules, sink)
        self._follows_standing = follows_standing
        self._sink = sink
        self._mount_namespace = mount_namespace_of("self")
        self._processes: dict[int, Process] = {}
        self._standing = 0
        self._calls = traced_calls()

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
        if result < 0 and call.clear_after_refusal(-result):
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
        process = self._process(thread)
        key = info[2:11]
        call = self._reader.read(
            thread.tid, kind, info[1], key, process, lambda: self._fresh_root(thread)
        )
        if call is not None:
            self._predict(thread, call)
        return call

    def _fresh_root(self, thread: Thread) -> bytes:
        return self._credentials(thread).root  # anew after a chroot: paths start from its root

    def _is_same(self, tid: int, call: OpenCall) -> bool:
        """Tell whether a call with the key of a former one is that one, made again."""
        position = call.arguments.path
        if position is not None and tracee.read_path(tid, call.values[position]) != call.path:
            return False
        if call.kind is Kind.OPENAT2:
            flags = tracee.memory_or_none(tid, call.values[call.arguments.flags], 8)
            return flags == call.flags.to_bytes(8, "little")
        return True

    def _predict(self, thread: Thread, call: OpenCall) -> None:
        """Clear O_NOATIME at once where its refusal is certain, which saves two stops."""
        credentials = self._credentials(thread)
        if credentials.cap_fowner:
            return
        for entry in call.verdict.clear_on:
            if noatime_refusal(entry[0], entry[1]):
                break
        else:
            return
        if call.kind is Kind.SETFL:
            call.owner = tracee.fd_owner(thread.tid, signed(call.values[0]))
        elif (
            call.path
            and call.full is not None
            and not call.resolve & RESOLVE_IN_ROOT  # it starts elsewhere than paths do
            and credentials.shares_view
            and not call.full.startswith(_OWN_PROC)
            and call.flags & os.O_TMPFILE != os.O_TMPFILE  # a new file, and the thread's own
        ):
            call.owner = tracee.owner_foreseen(
                thread.tid,
                call.dirfd,
                call.path,
                follow=not call.flags & os.O_NOFOLLOW,
            )
        if call.owner is not None and credentials.would_be_refused(call.owner):
            call.clear |= entry[1]
            call.rules.append(entry[2])
            call.predicted = True

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
                root = thread.credentials.root if thread.credentials else b"/"
                resolved = tracee.absolute_path(tid, call.dirfd, call.path, root)
            elif call.kind is Kind.SETFL:
                resolved = tracee.fd_path(tid, signed(call.values[0]))
            name = errno.errorcode.get(-result, str(-result))
            return self._event(thread, call, resolved, None, name)
        fd = signed(call.values[0]) if call.kind is Kind.SETFL else result
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
        fsuid = thread.credentials.fsuid if thread.credentials else None
        return event_of(call, thread.tid, self._process(thread), fsuid, resolved, result, error)

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
                process = self._processes[pid] = self._reader.process(
                    pid, tracee.program_name(thread.tid)
                )
            thread.process = process
        return thread.process

    def _blind_spot(self, thread: Thread, kind: str) -> None:
        self._sink.blind_spot(kind, self._process(thread).program)


def refuse(tid: int) -> None:
    """Have the call at a seccomp stop fail as it would without a tracer (seccomp(2), RET_TRACE)."""
    ptrace_poke_user(tid, NUMBER, -1)
    ptrace_poke_user(tid, RESULT, -errno.ENOSYS)
