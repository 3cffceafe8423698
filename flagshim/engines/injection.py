"""Putting our filter into a process that runs already.

A thread is stopped, made to call seccomp(2) for all threads, and put back to where it was. The
filter itself cannot be taken back: it stays until the process ends.
"""

import errno
import os
import signal
import struct
import time
from collections.abc import Iterable

from flagshim import tracee
from flagshim.engines.restarts import result_to_restart
from flagshim.engines.tracer import SYSCALL_STOP
from flagshim.errors import FlagshimError
from flagshim.linux.memory import read_memory
from flagshim.linux.ptrace import (
    PTRACE_EVENT_STOP,
    WAIT_TRACEES,
    get_registers,
    get_signal_mask,
    ptrace_cont,
    ptrace_entry_info,
    ptrace_exit_info,
    ptrace_interrupt,
    ptrace_syscall,
    set_registers,
    set_signal_mask,
)
from flagshim.syscalls import ABI_BY_AUDIT_ARCH, RED_ZONE, SECCOMP_SET_MODE_FILTER, X86_64

_STOP_SECONDS = 3.0
"""How long a thread may take to stop before another one is tried."""
_ALL_SIGNALS = (1 << 64) - 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_PR_SET_NO_NEW_PRIVS = 38
_NR_SECCOMP, _NR_PRCTL = 317, 157  # arch/x86/entry/syscalls/syscall_64.tbl
_NO_CALL = (1 << 64) - 1
"""As orig_rax: nothing is to be made again."""
_HEADER_SIZE = 16
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_PAGE = 4096


def check_injectable(pid: int) -> None:
    """Refuse a process whose own filter might answer our system calls with its end.

    Raises:
        FlagshimError: it has one.
    """
    if tracee.has_seccomp_filter(pid):
        raise _refusal(
            pid,
            "it has a seccomp filter of its own, which might kill it for that",
            f"leave --inject-filter out; if it is of a flagshim that was killed, flagshim attach "
            f"{pid} serves it again",
        )


def inject_filter(pid: int, tids: Iterable[int], program: bytes) -> None:
    """Install a seccomp filter in all threads of a process.

    Args:
        pid: the process.
        tids: its threads, seized, running.
        program: what `build_filter` returned.

    Raises:
        FlagshimError: it could not be installed, and nothing is changed but for no_new_privs.
    """
    try:
        tid = _stopped_thread(pid, tids)
        try:
            _install(pid, tid, program)
        finally:
            ptrace_cont(tid)
    except ProcessLookupError:
        raise FlagshimError(f"process {pid} ended meanwhile", "see ps -e") from None


def _stopped_thread(pid: int, tids: Iterable[int]) -> int:
    """Stop a thread where none of its calls is under way, or is about to be made again."""
    for tid in tids:
        try:
            ptrace_interrupt(tid)
        except ProcessLookupError:
            continue
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            found, status = os.waitpid(tid, WAIT_TRACEES | os.WNOHANG)
            if not found:
                time.sleep(1e-3)
            elif not os.WIFSTOPPED(status):
                break
            elif status >> 16 != PTRACE_EVENT_STOP:
                _run_on(tid, status)
                ptrace_interrupt(tid)  # once more: any stop takes a pending one away
            elif os.WSTOPSIG(status) == signal.SIGTRAP:
                return tid
            else:
                raise _refusal(pid, "it is stopped", f"let it run first: kill -CONT {pid}")
    raise _refusal(pid, "no thread of it stops", "try again, or leave --inject-filter out")


def _run_on(tid: int, status: int) -> None:
    event = status >> 16
    ptrace_cont(tid, 0 if event else os.WSTOPSIG(status))


def _install(pid: int, tid: int, program: bytes) -> None:
    if ABI_BY_AUDIT_ARCH.get(ptrace_entry_info(tid)[1]) is not X86_64:
        raise _refusal(pid, "it is not a 64-bit program")
    instruction = _syscall_instruction(pid, tid)
    former = get_registers(tid)
    mask = get_signal_mask(tid)
    size = _HEADER_SIZE + len(program)
    scratch = (former["rsp"] - RED_ZONE - size) & ~15
    memory = tracee.memory_or_none(tid, scratch, size)
    # struct sock_fprog: length, six bytes of padding, address.
    header = struct.pack("=QQ", len(program) // 8, scratch + _HEADER_SIZE)
    if memory is None or not tracee.try_write(tid, scratch, header + program):
        raise _refusal(pid, "its stack is not ours to write to")

    held: list[int] = []

    def call(number: int, *arguments: int) -> int:
        changed = {**former, "rip": instruction, "rax": number, "orig_rax": _NO_CALL}
        changed |= zip(X86_64.registers, arguments, strict=False)
        set_registers(tid, changed)
        for _ in range(2):  # at its entry, at its exit
            ptrace_syscall(tid)
            _wait_for(tid, SYSCALL_STOP, 0, held)
        return ptrace_exit_info(tid)

    try:
        set_signal_mask(tid, _ALL_SIGNALS)
        seccomp = (_NR_SECCOMP, SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, scratch)
        result = call(*seccomp)
        if result == -errno.EACCES:  # takes CAP_SYS_ADMIN or no_new_privs, seccomp(2)
            call(_NR_PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            result = call(*seccomp)
    finally:
        # Not at the syscall-exit stop: the kernel would hand -ERESTARTSYS and its like to the
        # program. Where PTRACE_INTERRUPT stops it, it still looks at what the registers say.
        ptrace_interrupt(tid)
        ptrace_cont(tid)
        _wait_for(tid, signal.SIGTRAP, PTRACE_EVENT_STOP, held)
        tracee.try_write(tid, scratch, memory)
        former["rax"] = result_to_restart(former["rax"], former["orig_rax"])
        set_registers(tid, former)
        set_signal_mask(tid, mask)
        for number in held:
            os.kill(pid, number)
    if result > 0:
        raise _refusal(pid, f"thread {result} has another filter")
    if result < 0:
        raise _refusal(pid, os.strerror(-result))


def _wait_for(tid: int, number: int, event: int, held: list[int]) -> None:
    """Wait for a certain stop of a running thread; its signals are blocked, but for SIGSTOP."""
    while True:
        _, status = os.waitpid(tid, WAIT_TRACEES)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(tid)
        if (os.WSTOPSIG(status), status >> 16) == (number, event):
            return
        if not status >> 16:
            held.append(os.WSTOPSIG(status))
        if event:
            ptrace_cont(tid)
        else:
            ptrace_syscall(tid)


def _syscall_instruction(pid: int, tid: int) -> int:
    """Return the address of a system call instruction: the vDSO, vdso(7), has some."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        spans = [line.split(b" ", 1)[0] for line in file if line.endswith(b"[vdso]\n")]
    for span in spans:
        start, end = (int(edge, 16) for edge in span.split(b"-"))
        for page in range(start, end, _PAGE):
            found = read_memory(tid, page, _PAGE).find(_SYSCALL_INSTRUCTION)
            if found >= 0:
                return page + found
    raise _refusal(pid, "it has no vDSO")


def _refusal(pid: int, cause: str, hint: str = "leave --inject-filter out") -> FlagshimError:
    return FlagshimError(f"cannot put a filter into process {pid}: {cause}", hint)
