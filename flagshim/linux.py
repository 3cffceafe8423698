"""What flagshim asks of the kernel and libc that Python does not offer.

The only module that uses ctypes. Every function raises OSError (a subclass by
errno, so a vanished thread is ProcessLookupError) and imports nothing of the project.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

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

AT_FDCWD: Final = -100

_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = 0xFFFF_FFFF_FFFF_FFFF
_SECCOMP_MODE_FILTER = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _function(
    name: str, *argtypes: type, restype: type = ctypes.c_long
) -> "ctypes._NamedFuncPointer":
    function = _libc[name]  # a new one each time: syscall(2) has several signatures here
    function.argtypes = argtypes
    function.restype = restype
    return function


def _failure(what: str = "") -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what or None)


# --- ptrace ---------------------------------------------------------------------------


# python-ptrace has this call too; its checks cost as much again as the call, six times an open.
_raw_ptrace = _function(
    "ptrace", ctypes.c_long, ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong
)  # fmt: skip


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _raw_ptrace(request, tid, address, data) < 0:
        raise _failure()


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
        raise _failure()
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


# --- another process's memory ---------------------------------------------------------


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_PAGE = os.sysconf("SC_PAGE_SIZE")
_MEMORY_CALL = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong,
    ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip
_process_vm_readv = _function("process_vm_readv", *_MEMORY_CALL)
_process_vm_writev = _function("process_vm_writev", *_MEMORY_CALL)
_local_buffer = ctypes.create_string_buffer(_PAGE)
_local_buffer_at = ctypes.addressof(_local_buffer)
_local = _IoVec(_local_buffer_at, _PAGE)
_local_at = ctypes.addressof(_local)
_remote = (_IoVec * 2)()
_remote_at = ctypes.addressof(_remote)
_remote_first, _remote_second = _remote


def read_memory(tid: int, address: int, size: int) -> bytes:
    """Read up to `size` bytes (at most a page), fewer where the next page is not readable.

    Split at the page edge, because a transfer is partial only by whole iovec elements
    (process_vm_readv(2)).
    """
    first = min(size, _PAGE - address % _PAGE)
    _local.length = size
    _remote_first.base = address
    _remote_first.length = first
    _remote_second.base = address + first
    _remote_second.length = size - first
    count = _process_vm_readv(tid, _local_at, 1, _remote_at, 2 if size > first else 1, 0)
    if count < 0:
        raise _failure()
    return ctypes.string_at(_local_buffer_at, count)


def write_memory(tid: int, address: int, data: bytes) -> None:
    """Write `data` (at most a page) where the thread itself could write it."""
    ctypes.memmove(_local_buffer_at, data, len(data))
    _local.length = _remote_first.length = len(data)
    _remote_first.base = address
    count = _process_vm_writev(tid, _local_at, 1, _remote_at, 1, 0)
    if count != len(data):
        raise _failure()


# --- looking at files without waiting for their filesystem ----------------------------


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_NR_OPENAT2 = 437  # the same on every architecture
_RESOLVE_CACHED = 0x20
_O_PATH = os.O_PATH
_O_CLOEXEC = os.O_CLOEXEC
_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_STATX_DONT_SYNC = 0x4000
_STATX_UID = 0x8
_syscall = _function(
    "syscall", ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_long
)
_statx = _function(
    "statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
    restype=ctypes.c_int,
)  # fmt: skip
_how = _OpenHow(0, 0, _RESOLVE_CACHED)
_how_at = ctypes.addressof(_how)
_statx_buffer = ctypes.create_string_buffer(256)
_statx_buffer_at = ctypes.addressof(_statx_buffer)
_statx_uid = struct.Struct("=I").unpack_from  # stx_uid is at byte 20, linux/stat.h


RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = _RESOLVE_CACHED
"""Of openat2(2)."""
_any_how = _OpenHow()
_any_how_at = ctypes.addressof(_any_how)


def openat2(directory: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """Open a file as openat2(2) does, and return its descriptor."""
    _any_how.flags, _any_how.mode, _any_how.resolve = flags, mode, resolve
    fd = _syscall(_NR_OPENAT2, directory, path, _any_how_at, ctypes.sizeof(_OpenHow))
    if fd < 0:
        raise _failure()
    return int(fd)


class FileFacts(NamedTuple):
    """What statx(2) tells of an open file without asking its filesystem."""

    mode: int
    """Type and permissions."""
    owner: int
    """Its uid, as the mount shows it."""
    inode: int
    size: int
    mount: int | None
    """An ID that no other mount ever has (STATX_MNT_ID_UNIQUE); None before Linux 6.8."""


_STATX_FACTS = 0x1 | 0x2 | _STATX_UID | 0x100 | 0x200 | 0x4000
_STATX_MNT_ID_UNIQUE = 0x4000
# struct statx, linux/stat.h: stx_mask, stx_uid, stx_mode, stx_ino, stx_size, stx_mnt_id.
_statx_facts = struct.Struct("=I16xI4xH2xQQ96xQ").unpack_from


def facts_of(directory: int, path: bytes = b"") -> FileFacts:
    """Look at a file, or at the one a descriptor is open on."""
    flags = _AT_STATX_DONT_SYNC | _AT_EMPTY_PATH
    if _statx(directory, path, flags, _STATX_FACTS, _statx_buffer_at) < 0:
        raise _failure()
    mask, uid, mode, inode, size, mount = _statx_facts(_statx_buffer)
    return FileFacts(mode, uid, inode, size, mount if mask & _STATX_MNT_ID_UNIQUE else None)


_fstatfs = _function("fstatfs", ctypes.c_int, ctypes.c_void_p, restype=ctypes.c_int)


def filesystem_type(fd: int) -> int:
    """Return the f_type of statfs(2), which may ask the filesystem, and wait for it."""
    if _fstatfs(fd, _statx_buffer_at) < 0:
        raise _failure()
    return int.from_bytes(_statx_buffer.raw[:4], "little")


_open_by_handle_at = _function(
    "open_by_handle_at", ctypes.c_int, ctypes.c_void_p, ctypes.c_int, restype=ctypes.c_int
)


def open_by_handle_at(mount: int, handle: bytes, flags: int) -> int:
    """Open a file by its handle, open_by_handle_at(2).

    Args:
        mount: a descriptor of anything on its mount.
        handle: struct file_handle, whole.
        flags: open flags.
    """
    buffer = ctypes.create_string_buffer(handle, len(handle))
    fd = _open_by_handle_at(mount, ctypes.addressof(buffer), flags)
    if fd < 0:
        raise _failure()
    return int(fd)


def owner_if_cached(directory: int, path: bytes, follow: bool) -> int | None:
    """Return the owner (uid) of `path` if the kernel has it in memory, else None.

    Args:
        directory: where a relative path starts, or AT_FDCWD.
        path: of the file.
        follow: whether the last component may be a symbolic link.

    RESOLVE_CACHED (Linux 5.12, openat2(2)) fails where the lookup would have to ask a
    filesystem. That matters: a FUSE server may be one of the processes that are
    waiting for us, and then the answer would never come.
    """
    _how.flags = _O_PATH | _O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = _syscall(_NR_OPENAT2, directory, path, _how_at, ctypes.sizeof(_OpenHow))
    if fd < 0:
        return None
    flags = _AT_STATX_DONT_SYNC | _AT_EMPTY_PATH
    status = _statx(fd, b"", flags, _STATX_UID, _statx_buffer_at)
    os.close(fd)
    return None if status < 0 else int(_statx_uid(_statx_buffer, 20)[0])


def owner(path: bytes) -> int:
    """Return the owner (uid) of a file as its filesystem last told, without asking it again."""
    if _statx(AT_FDCWD, path, _AT_STATX_DONT_SYNC, _STATX_UID, _statx_buffer_at) < 0:
        raise _failure()
    return int(_statx_uid(_statx_buffer, 20)[0])


# --- answering the calls of a seccomp listener ------------------------------------------

_ioctl = _function(
    "ioctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, restype=ctypes.c_int
)  # fmt: skip
_NR_SECCOMP = {"x86_64": 317, "aarch64": 277}
_NR_PIDFD_GETFD = 438  # the same on every architecture
_PIDFD_THREAD = os.O_EXCL
_address_syscall = _function(
    "syscall", ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p
)  # fmt: skip
_pidfd_getfd = _function("syscall", ctypes.c_int, ctypes.c_int, ctypes.c_uint)


def device_control(fd: int, request: int, address: int) -> int:
    """Make an ioctl(2) on memory that the kernel is to read or to fill itself.

    fcntl.ioctl() has the kernel fill a buffer of its own, and whoever is killed before that is
    copied has lost it.
    """
    result = _ioctl(fd, request, address)
    if result < 0:
        raise _failure()
    return int(result)


def address_of(memory: mmap.mmap | bytearray) -> int:
    """Return where memory begins, which from now on stays as large as it is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def open_thread(tid: int) -> int:
    """Return a pidfd for one thread.

    Raises:
        OSError: EINVAL: the kernel has them for thread groups only, before Linux 6.9.
    """
    return os.pidfd_open(tid, _PIDFD_THREAD)


def duplicate_of(pidfd: int, fd: int) -> int:
    """Return a duplicate of another thread's descriptor: pidfd_getfd(2)."""
    duplicate = _pidfd_getfd(_NR_PIDFD_GETFD, pidfd, fd, 0)
    if duplicate < 0:
        raise _failure()
    return int(duplicate)


_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_CREDS = 1 << 1
_PIDFD_INFO_EXIT = 1 << 3
# struct pidfd_info, linux/pidfd.h, in its first version: mask, cgroupid, pid, tgid, ppid, real,
# effective, saved and filesystem uid and gid, exit_code.
_pidfd_info = struct.Struct("=QQ3I8Ii")
_pidfd_buffer = bytearray(_pidfd_info.size)
_pidfd_buffer_at = address_of(_pidfd_buffer)
_pidfd_asks_creds = _pidfd_info.pack(_PIDFD_INFO_CREDS, *[0] * 13)


class ThreadIds(NamedTuple):
    """What a pidfd tells of its thread."""

    pid: int
    """Thread group ID."""
    euid: int
    egid: int
    fsuid: int
    fsgid: int


def ids_of(pidfd: int) -> ThreadIds:
    """Return the IDs of a thread, credentials(7).

    Raises:
        ProcessLookupError: it has ended.
        OSError: the kernel does not tell: before Linux 6.13.
    """
    _pidfd_buffer[:] = _pidfd_asks_creds
    device_control(pidfd, _PIDFD_GET_INFO, _pidfd_buffer_at)
    info = _pidfd_info.unpack(_pidfd_buffer)
    return ThreadIds(info[3], info[7], info[8], info[11], info[12])


def wait_status_of(pidfd: int) -> int | None:
    """Return the wait status of a process that has ended and was reaped by its parent.

    None where the kernel does not tell: before Linux 6.15.
    """
    _pidfd_buffer[:] = _pidfd_info.pack(_PIDFD_INFO_EXIT, *[0] * 13)
    try:
        device_control(pidfd, _PIDFD_GET_INFO, _pidfd_buffer_at)
    except OSError:
        return None
    info = _pidfd_info.unpack(_pidfd_buffer)
    return int(info[-1]) if info[0] & _PIDFD_INFO_EXIT else None


_signalfd = _function(
    "signalfd", ctypes.c_int, ctypes.c_void_p, ctypes.c_int, restype=ctypes.c_int
)  # fmt: skip


def open_signals(signals: Iterable[int]) -> int:
    """Return a descriptor that can be read while one of these blocked signals is pending.

    signalfd(2), for poll(2) only: sigtimedwait(2) takes the signal.
    """
    # sigset_t of the C library, of which the kernel reads the first 64 bits.
    mask = ctypes.create_string_buffer(128)
    struct.pack_into("=Q", mask, 0, sum(1 << (number - 1) for number in signals))
    fd = _signalfd(-1, ctypes.addressof(mask), os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise _failure()
    return int(fd)


# --- being somebody else for a moment ---------------------------------------------------

_setfsuid = _function("setfsuid", ctypes.c_uint, restype=ctypes.c_int)
_setfsgid = _function("setfsgid", ctypes.c_uint, restype=ctypes.c_int)
_NOBODY_AT_ALL = 0xFFFF_FFFF
_capset = _function("capset", ctypes.c_void_p, ctypes.c_void_p, restype=ctypes.c_int)
_capget = _function("capget", ctypes.c_void_p, ctypes.c_void_p, restype=ctypes.c_int)
# struct __user_cap_header_struct with _LINUX_CAPABILITY_VERSION_3, then a thread or 0.
_cap_header = struct.Struct("=Ii")
_CAP_VERSION = 0x20080522
_cap_whose = ctypes.create_string_buffer(8)
_cap_whose_at = ctypes.addressof(_cap_whose)
_cap_sets = struct.Struct("=6I")  # effective, permitted, inheritable; the upper halves
_cap_data = ctypes.create_string_buffer(24)
_cap_data_at = ctypes.addressof(_cap_data)
_LOW = 0xFFFF_FFFF


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Set our own capability sets, bit N for capability N: capset(2)."""
    _cap_header.pack_into(_cap_whose, 0, _CAP_VERSION, 0)
    _cap_sets.pack_into(
        _cap_data, 0,
        effective & _LOW, permitted & _LOW, inheritable & _LOW,
        effective >> 32, permitted >> 32, inheritable >> 32,
    )  # fmt: skip
    if _capset(_cap_whose_at, _cap_data_at) < 0:
        raise _failure()


def capabilities_of(tid: int) -> tuple[int, int, int]:
    """Return the (effective, permitted, inheritable) capabilities of a thread: capget(2).

    Raises:
        ProcessLookupError: there is none.
    """
    _cap_header.pack_into(_cap_whose, 0, _CAP_VERSION, tid)
    if _capget(_cap_whose_at, _cap_data_at) < 0:
        raise _failure()
    e, p, i, effective, permitted, inheritable = _cap_sets.unpack(_cap_data)
    return effective << 32 | e, permitted << 32 | p, inheritable << 32 | i


_PR_GET_SECUREBITS = 27


def secure_bits() -> int:
    """Return what changes of IDs do to our capabilities other than usual (capabilities(7))."""
    return int(_prctl(_PR_GET_SECUREBITS, 0, None, 0, 0))


def set_filesystem_ids(uid: int, gid: int) -> None:
    """Set fsuid and fsgid, credentials(7), apart from the effective IDs.

    Raises:
        PermissionError: they may not be set; setfsuid(2) itself does not say so.
    """
    _setfsgid(gid)
    _setfsuid(uid)
    if _setfsgid(_NOBODY_AT_ALL) != gid or _setfsuid(_NOBODY_AT_ALL) != uid:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


# --- becoming another program ---------------------------------------------------------


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_prctl = _function(
    "prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    restype=ctypes.c_int,
)  # fmt: skip
_execvpe = _function(
    "execvpe", ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_char_p),
    restype=ctypes.c_int,
)  # fmt: skip


def allow_any_tracer(allow: bool) -> None:
    """Let any process of this user trace us, or no longer, where Yama has a say in it."""
    _prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY if allow else 0, None, 0, 0)


def set_name(name: str) -> None:
    """Set what ps(1) shows as the command name of this thread; 15 bytes at most."""
    text = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(text), None, 0, 0)


def set_title(text: str) -> None:
    """Set what ps(1) shows as arguments of this process, as far as its own left room.

    Only that memory is written to (arg_start and arg_end in proc(5)), not the environment
    behind it.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    # The NUL at the end tells the kernel that the environment is not part of it.
    title = os.fsencode(text)[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title, len(title))


def set_no_new_privs() -> None:
    """Give up set-user-ID and file capabilities for good: prctl(2), PR_SET_NO_NEW_PRIVS."""
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) != 0:
        raise _failure()


def install_seccomp_filter(program: bytes) -> None:
    """Install a classic BPF program for this thread and all that come of it.

    Raises:
        PermissionError: without CAP_SYS_ADMIN it takes no_new_privs (seccomp(2), EACCES).
    """
    code = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(code))
    if _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(prog), 0, 0) != 0:
        raise _failure()


_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5


def install_seccomp_listener(program: bytes) -> int:
    """Install a classic BPF program like `install_seccomp_filter`, and return its listener.

    Once a call was received from it, only a fatal signal interrupts that
    (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, commit c2aa2dfef243, Linux 5.19).

    Raises:
        PermissionError: without CAP_SYS_ADMIN it takes no_new_privs (seccomp(2), EACCES).
        OSError: EBUSY: we are under a filter that has a listener; EINVAL: an older kernel.
    """
    code = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(code))
    fd = _address_syscall(
        _NR_SECCOMP[os.uname().machine],
        _SECCOMP_SET_MODE_FILTER,
        _SECCOMP_FILTER_FLAG_NEW_LISTENER | _SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        ctypes.addressof(prog),
    )
    if fd < 0:
        raise _failure()
    return int(fd)


def execvpe(argv: list[bytes], environment: list[bytes]) -> None:
    """Become `argv`, found through PATH as execvp(3) finds it; returns only by raising.

    `environment` goes through byte for byte, entries without "=" and doubles included,
    which os.execve() cannot do.
    """
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    strings = (ctypes.c_char_p * (len(environment) + 1))(*environment, None)
    _execvpe(argv[0], arguments, strings)
    raise _failure()


# --- for probes -----------------------------------------------------------------------

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


def set_child_subreaper(on: bool) -> None:
    """Have orphans among our descendants become our children: prctl(2)."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, int(on), None, 0, 0) != 0:
        raise _failure()


def is_child_subreaper() -> bool:
    """Tell whether orphans among our descendants become our children."""
    on = ctypes.c_int()
    return _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(on), None, 0, 0) == 0 and on.value != 0


def raw_syscall(number: int, *arguments: int | bytes) -> int:
    """Make a system call by its number; what it writes to a copy of `bytes` is thrown away."""
    syscall = _libc["syscall"]
    syscall.restype = ctypes.c_long
    values = (
        ctypes.create_string_buffer(argument, len(argument))
        if isinstance(argument, bytes)
        else ctypes.c_long(argument)
        for argument in arguments
    )
    result = int(syscall(ctypes.c_long(number), *values))
    if result < 0:
        raise _failure()
    return result


class _ScmpVersion(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def libseccomp_version() -> str:
    """Return the version of the installed libseccomp, or "?" if there is none."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return "?"
    library.seccomp_version.restype = ctypes.POINTER(_ScmpVersion)
    version = library.seccomp_version().contents
    return f"{version.major}.{version.minor}.{version.micro}"


# --- for BPF programs -----------------------------------------------------------------

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_unshare = _function("unshare", ctypes.c_int, restype=ctypes.c_int)
_mount = _function(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p,
    restype=ctypes.c_int,
)  # fmt: skip


def mount_tracefs_privately(target: str) -> None:
    """Mount tracefs in a mount namespace of our own, which children made later share.

    What others mount still reaches us (mount_namespaces(7), MS_SLAVE), ours reaches nobody.
    """
    if _unshare(_CLONE_NEWNS) != 0 or _mount(None, b"/", None, _MS_REC | _MS_SLAVE, None) != 0:
        raise _failure()
    if _mount(b"tracefs", target.encode(), b"tracefs", 0, None) != 0:
        raise _failure(target)


def memory_at(address: int, size: int) -> bytes:
    """Copy `size` bytes of our own memory that a C library points to."""
    return ctypes.string_at(address, size)


_NR_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_SET_BPF = 0x40042408
_PERF_TYPE_TRACEPOINT = 2
_PERF_ATTR_INHERIT = 2
# struct perf_event_attr up to PERF_ATTR_SIZE_VER5, linux/perf_event.h: type, size, config, three
# of no interest here, flags.
_perf_event_attr = struct.Struct("=IIQQQQQ64x")


def open_event(event: int, pid: int, inherit: bool) -> int:
    """Have a trace event happen in a process: perf_event_open(2).

    At a uprobe that puts the breakpoint into the memory of the process, and of nobody else.
    (Not by the uprobe PMU: for each child that reads the name of the file anew, from the memory
    of the process that forks, and fails the fork.)

    Args:
        event: its ID in tracefs.
        pid: the process.
        inherit: whether it is also for processes that come of it.

    Returns:
        A descriptor; closing it undoes it.
    """
    attr = _perf_event_attr.pack(
        _PERF_TYPE_TRACEPOINT, _perf_event_attr.size, event, 0, 0, 0, _PERF_ATTR_INHERIT * inherit
    )
    number = _NR_PERF_EVENT_OPEN[os.uname().machine]
    return raw_syscall(number, attr, pid, -1, -1, _PERF_FLAG_FD_CLOEXEC)


def run_at_event(fd: int, program: int) -> None:
    """Run a loaded BPF program wherever the trace event of `fd` happens, until that is closed."""
    fcntl.ioctl(fd, _PERF_EVENT_IOC_SET_BPF, program)


# --- for diagnosis ----------------------------------------------------------------------

_STATX_MNT_ID = 0x1000
_STATX_ATTRIBUTES = {0x10: "immutable", 0x20: "append-only", 0x100000: "fs-verity"}
# struct statx, linux/stat.h: stx_attributes, stx_uid, stx_dev_minor, stx_mnt_id (Linux 5.8)
_statx_inode = struct.Struct("=8xQ4xI116xIQ").unpack_from


class Inode(NamedTuple):
    """What statx(2) tells of a file."""

    owner: int
    attributes: frozenset[str]
    """immutable, append-only, fs-verity."""
    device_minor: int
    """Of its filesystem; for FUSE the number of the connection."""
    mount_id: int
    """As the first column of /proc/PID/mountinfo; 0 before Linux 5.8."""


def inode_of(path: bytes, follow: bool) -> Inode:
    """Look at a file, with what its filesystem last told where that will do."""
    flags = _AT_STATX_DONT_SYNC | (0 if follow else _AT_SYMLINK_NOFOLLOW)
    if _statx(AT_FDCWD, path, flags, _STATX_UID | _STATX_MNT_ID, _statx_buffer_at) < 0:
        raise _failure()
    attributes, owner_uid, minor, mount_id = _statx_inode(_statx_buffer)
    names = frozenset(name for bit, name in _STATX_ATTRIBUTES.items() if attributes & bit)
    return Inode(owner_uid, names, minor, mount_id)
