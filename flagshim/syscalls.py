"""The system calls that carry open flags, and the registers they carry them in.

Argument positions are the same in every ABI; numbers and registers are not. Numbers
are left to libseccomp, which builds the filter from these names.
"""

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What a stop is about. The value travels in seccomp's return data."""

    OPEN = 1
    OPENAT = 2
    OPENAT2 = 3
    OPEN_BY_HANDLE_AT = 4
    SETFL = 5
    """fcntl(2) F_SETFL, which sets O_NOATIME and O_DIRECT on an open descriptor."""
    STANDING = 6
    """A call that changes who the thread is, or what its paths mean."""
    IO_URING = 7
    """A ring whose opens no system call shows."""
    CLONE = 8
    CLONE3 = 9
    """A new thread or process, which is to be traced as well."""
    LISTENER = 10
    """A filter with a listener, whose answers come before ours (seccomp_unotify(2))."""
    LANDLOCK = 11
    """A thread that confines itself (landlock(7))."""
    GROUPS = 12
    """A thread that changes its supplementary groups."""


class Arguments(NamedTuple):
    """Where a call keeps what we look at: argument positions from 0, None where absent."""

    syscall: str
    dirfd: int | None
    path: int | None
    flags: int
    """Of the flags themselves; for openat2 of the address of its struct open_how."""


ARGUMENTS = {
    Kind.OPEN: Arguments("open", None, 0, 1),
    Kind.OPENAT: Arguments("openat", 0, 1, 2),
    Kind.OPENAT2: Arguments("openat2", 0, 1, 2),
    Kind.OPEN_BY_HANDLE_AT: Arguments("open_by_handle_at", None, None, 2),
    Kind.SETFL: Arguments("fcntl", 0, None, 2),
}

STANDING_CALLS = (
    "setuid", "setuid32", "setreuid", "setreuid32", "setresuid", "setresuid32",
    "setfsuid", "setfsuid32", "capset", "setns", "unshare", "chroot", "pivot_root",
)  # fmt: skip
"""Calls after which credentials(7), the root or the mount namespace may be others."""

CLONE_UNTRACED = 0x0080_0000
"""include/uapi/linux/sched.h: the child is not to be traced automatically."""

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
"""First and second argument of seccomp(2), include/uapi/linux/seccomp.h."""

GROUP_CALLS = ("setgroups", "setgroups32")
"""Calls after which a thread's supplementary groups may be others than those it began with."""

OPEN_HOW_MIN = 24
"""Size of the first struct open_how, openat2(2), in bytes."""


RESOLVE_IN_ROOT = 0x10
"""openat2(2): the path starts at dirfd as if that were the root directory."""


class Abi(NamedTuple):
    """One way into the kernel: who calls, and in which registers."""

    name: str
    registers: tuple[str, str, str, str, str, str]
    """Argument registers, named as in the tracer's own struct user_regs_struct."""
    instruction_size: int
    """Bytes to go back to run the system call instruction again."""
    address_bits: int
    """Width of an argument that is an address."""


X86_64 = Abi("x86_64", ("rdi", "rsi", "rdx", "r10", "r8", "r9"), 2, 64)
I386 = Abi("i386", ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp"), 2, 32)
AARCH64 = Abi("aarch64", ("r0", "r1", "r2", "r3", "r4", "r5"), 4, 64)

ABI_BY_AUDIT_ARCH = {0xC000003E: X86_64, 0x40000003: I386, 0xC00000B7: AARCH64}
"""AUDIT_ARCH_* of include/uapi/linux/audit.h, as PTRACE_GET_SYSCALL_INFO reports it."""

RED_ZONE = 128
"""Bytes below the stack pointer that a function may use (System V ABI, x86-64)."""

X32_BIT = 0x40000000
"""Set in the number of an x32 call, arch/x86/include/uapi/asm/unistd.h."""
