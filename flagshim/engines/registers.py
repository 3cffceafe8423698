"""The registers of a stopped thread, by what they mean to a system call (x86-64)."""

from ptrace.binding.linux_struct import user_regs_struct

from flagshim.linux.ptrace import ptrace_poke_user
from flagshim.syscalls import Abi

_OFFSET = {name: getattr(user_regs_struct, name).offset for name, _ in user_regs_struct._fields_}

INSTRUCTION_POINTER = _OFFSET["rip"]
RESULT = _OFFSET["rax"]
"""What the call returned; where the kernel takes the number from when it is made again."""
NUMBER = _OFFSET["orig_rax"]


def poke_argument(tid: int, abi: Abi, position: int, value: int) -> None:
    """Write an argument of a call; positions count from 0.

    Raises:
        ProcessLookupError: the thread was killed.
    """
    ptrace_poke_user(tid, _OFFSET[abi.registers[position]], value)
