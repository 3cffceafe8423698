"""ptrace(2), and waiting for tracees."""

import ctypes
import struct
from typing import Final

from ptrace.binding.func import (
    PTRACE_CONT,
    PTRACE_DETACH,
    PTRACE_GETEVENTMSG,
    PTRACE_GETREGS,
    PTRACE_GETSIGINFO,
    PTRACE_O_TRACECLONE,
    PTRACE_O_TRACEEXEC,
    PTRACE_O_TRACEEXIT,
    PTRACE_O_TRACEFORK,
    PTRACE_O_TRACESYSGOOD,
    PTRACE_O_TRACEVFORK,
    PTRACE_PEEKUSER,
    PTRACE_POKEUSER,
    PTRACE_SETREGS,
    PTRACE_SYSCALL,
)
from ptrace.binding.linux_struct import user_regs_struct

from flagshim.linux.libc import failure, function

# ptrace(2); python-ptrace 0.9 stops before PTRACE_SEIZE (Linux 3.4).
PTRACE_SEIZE: Final = 0x4206
PTRACE_INTERRUPT: Final = 0x4207
PTRACE_LISTEN: Final = 0x4208
PTRACE_GETSIGMASK: Final = 0x420A
PTRACE_SETSIGMASK: Final = 0x420B
PTRACE_GET_SYSCALL_INFO: Final = 0x420E
PTRACE_EVENT_FORK: Final = 1
PTRACE_EVENT_VFORK: Final = 2
PTRACE_EVENT_CLONE: Final = 3
PTRACE_EVENT_EXEC: Final = 4
PTRACE_EVENT_EXIT: Final = 6
PTRACE_EVENT_SECCOMP: Final = 7
PTRACE_EVENT_STOP: Final = 128
PTRACE_O_TRACESECCOMP: Final = 1 << 7
PTRACE_O_EXITKILL: Final = 1 << 20

SURVIVOR_OPTIONS: Final[int] = (
    PTRACE_O_TRACESYSGOOD
    | PTRACE_O_TRACEFORK
    | PTRACE_O_TRACEVFORK
    | PTRACE_O_TRACECLONE
    | PTRACE_O_TRACEEXEC
    | PTRACE_O_TRACEEXIT
    | PTRACE_O_TRACESECCOMP
)
"""For a program that is to go on without us."""
TRACE_OPTIONS: Final[int] = SURVIVOR_OPTIONS | PTRACE_O_EXITKILL
"""For a program that is to live and die with us."""

WALL: Final = 0x40000000
"""waitpid(2) __WALL: also for clones whose exit signal is not SIGCHLD."""
WAIT_TRACEES: Final = 0x80000000 - 0x1_0000_0000
"""waitpid(2) __WCLONE, as an int: not for ordinary children, such as a keeper of ours.

For tracees always, whatever their exit signal: eligible_child() in kernel/exit.c lets
everything pass that is traced by the caller (commit bf959931ddb8, Linux 4.7).
"""


# python-ptrace has this call too; its checks cost as much again as the call, six times an open.
_raw_ptrace = function(
    "ptrace", ctypes.c_long, ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong
)  # fmt: skip


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _raw_ptrace(request, tid, address, data) < 0:
        raise failure()


def ptrace_seize(tid: int, options: int) -> None:
    """Become the tracer of `tid` without stopping it."""
    _ptrace(PTRACE_SEIZE, tid, 0, options)


def ptrace_cont(tid: int, signal: int = 0) -> None:
    """Let `tid` run to its next event, delivering `signal`."""
    _ptrace(PTRACE_CONT, tid, 0, signal)


def ptrace_syscall(tid: int, signal: int = 0) -> None:
    """Let `tid` run to its next event or syscall stop, delivering `signal`."""
    _ptrace(PTRACE_SYSCALL, tid, 0, signal)


def ptrace_interrupt(tid: int) -> None:
    """Have `tid` stop, soon, without a signal."""
    _ptrace(PTRACE_INTERRUPT, tid)


def ptrace_detach(tid: int, signal: int = 0) -> None:
    """Trace `tid` no longer; it runs on, with `signal` delivered, or stays in a group-stop."""
    _ptrace(PTRACE_DETACH, tid, 0, signal)


def ptrace_listen(tid: int) -> None:
    """Leave `tid` in its group-stop, and hear of the end of it."""
    _ptrace(PTRACE_LISTEN, tid, 0, 0)


def ptrace_poke_user(tid: int, offset: int, value: int) -> None:
    """Write one register of a stopped thread; `offset` in bytes into struct user."""
    _ptrace(PTRACE_POKEUSER, tid, offset, value & 0xFFFF_FFFF_FFFF_FFFF)


def peek_user(tid: int, offset: int) -> int:
    """Read one register of a stopped thread, unsigned; `offset` in bytes into struct user."""
    ctypes.set_errno(0)
    value = int(_raw_ptrace(PTRACE_PEEKUSER, tid, offset, 0))
    if value == -1 and ctypes.get_errno():
        raise failure()
    return value & 0xFFFF_FFFF_FFFF_FFFF


Registers = dict[str, int]
"""struct user_regs_struct of sys/user.h, by member."""
_registers = user_regs_struct()
_registers_at = ctypes.addressof(_registers)


def get_registers(tid: int) -> Registers:
    """Read all general registers of a stopped thread."""
    _ptrace(PTRACE_GETREGS, tid, 0, _registers_at)
    return {name: getattr(_registers, name) for name, _ in user_regs_struct._fields_}


def set_registers(tid: int, registers: Registers) -> None:
    """Write all general registers of a stopped thread."""
    for name, value in registers.items():
        setattr(_registers, name, value)
    _ptrace(PTRACE_SETREGS, tid, 0, _registers_at)


_signal_mask = ctypes.c_uint64()
_signal_mask_at = ctypes.addressof(_signal_mask)


def get_signal_mask(tid: int) -> int:
    """Return the blocked signals of a stopped thread; signal N is bit N - 1."""
    _ptrace(PTRACE_GETSIGMASK, tid, 8, _signal_mask_at)
    return _signal_mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Set the blocked signals of a stopped thread."""
    _signal_mask.value = mask
    _ptrace(PTRACE_SETSIGMASK, tid, 8, _signal_mask_at)


_event_message = ctypes.c_ulong()
_event_message_at = ctypes.addressof(_event_message)


def ptrace_event_message(tid: int) -> int:
    """PTRACE_GETEVENTMSG: a thread's ID, new or former, a wait status, seccomp's data."""
    _ptrace(PTRACE_GETEVENTMSG, tid, 0, _event_message_at)
    return _event_message.value


_signal_info = ctypes.create_string_buffer(128)
_signal_info_at = ctypes.addressof(_signal_info)


def ptrace_signal_sender(tid: int) -> int | None:
    """Return who sent the signal that a thread is stopped with; None if the kernel did.

    siginfo_t (sigaction(2)): si_signo, si_errno, si_code, then for a signal of a process its PID.
    """
    _ptrace(PTRACE_GETSIGINFO, tid, 0, _signal_info_at)
    code, pid = struct.unpack_from("=i4xi", _signal_info, 8)
    return None if code > 0 else int(pid)


# struct ptrace_syscall_info, linux/ptrace.h (Linux 5.3): op, arch, instruction pointer,
# stack pointer, then for a seccomp stop nr, args[6], ret_data; for an exit stop rval, is_error.
_syscall_info = ctypes.create_string_buffer(88)
_syscall_info_at = ctypes.addressof(_syscall_info)
_unpack_entry = struct.Struct("=B3xIQQQ6QI").unpack_from
_unpack_exit = struct.Struct("=B3xIQQqB").unpack_from

SyscallEntry = tuple[int, int, int, int, int, int, int, int, int, int, int, int]


SYSCALL_ENTRY: Final = 1
"""`op` of a syscall-entry stop (PTRACE_SYSCALL_INFO_ENTRY)."""


def ptrace_entry_info(tid: int) -> SyscallEntry:
    """Describe the call at a stop: (op, arch, ip, sp, nr, arg0 … arg5, ret_data).

    From nr on, only at a seccomp or syscall-entry stop; ret_data only at a seccomp stop.
    """
    _ptrace(PTRACE_GET_SYSCALL_INFO, tid, 88, _syscall_info_at)
    return _unpack_entry(_syscall_info)


def ptrace_exit_info(tid: int) -> int:
    """Return the result of the call at a syscall-exit stop: a value, or minus the errno."""
    _ptrace(PTRACE_GET_SYSCALL_INFO, tid, 88, _syscall_info_at)
    return int(_unpack_exit(_syscall_info)[4])
