"""Probes of the ways into the kernel: which there are, and which flagshim does not see."""

import errno
import os
import platform
import signal
import struct

from flagshim.linux.files import AT_FDCWD
from flagshim.linux.libc import raw_syscall
from flagshim.probes.finding import Answer, limited, probe, works
from flagshim.probes.trial import child_status

_X86 = platform.machine() == "x86_64"
_NOT_X86 = "not an x86 machine: there is no such way in"

_MFD_EXEC = 0x10
_CANNOT_EXEC = 126
_SEVEN = 7
# mov $1,%eax (exit); mov $7,%ebx; int $0x80
_EXIT_SEVEN = bytes.fromhex("b801000000 bb07000000 cd80")

_NR_X32_GETPID = 0x4000_0000 + 39
_NR_IO_URING_SETUP = 425
_NR_OPENAT2 = 437
_RESOLVE_CACHED = 0x20


@probe("i386")
def i386() -> Answer:
    """Run a program of 32 bits, which enters the kernel by int $0x80."""
    if not _X86:
        return works(_NOT_X86)
    status = _run_i386()
    if status == _SEVEN:
        return works("programs of 32 bits run, and flagshim knows their calls")
    if status == _CANNOT_EXEC:
        return limited("not tried: nothing can be executed out of memory (memfd_create(2))", "")
    if status in (errno.ENOEXEC, -signal.SIGSYS, -signal.SIGSEGV):
        return works("programs of 32 bits do not run here, so that none escapes")
    return limited(f"a program of 32 bits ended with {status}, not {_SEVEN}", "")


def why_no_i386() -> str | None:
    """Say why programs of 32 bits do not run here; None if they do."""
    status = _run_i386() if _X86 else errno.ENOEXEC
    return None if status == _SEVEN else f"a program of 32 bits ended with {status}"


def _run_i386() -> int:
    """Return the exit status of a program that exits with 7, or the errno of its exec."""
    header, address = 52 + 32, 0x0804_8000
    size = header + len(_EXIT_SEVEN)
    identification = b"\x7fELF\1\1\1".ljust(16, b"\0")
    # elf(5): ET_EXEC, EM_386; one PT_LOAD of the whole file, readable and executable
    program = (
        identification
        + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, address + header, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        + struct.pack("<IIIIIIII", 1, 0, address, address, size, size, 5, 0x1000)
        + _EXIT_SEVEN
    )
    try:
        fd = _executable_memory()
    except OSError:
        return _CANNOT_EXEC
    os.write(fd, program)

    def execute() -> int:
        try:
            os.execve(fd, ["i386"], {})
        except OSError as error:
            return _CANNOT_EXEC if error.errno == errno.EACCES else error.errno or _CANNOT_EXEC

    status = child_status(execute)
    os.close(fd)
    return status


def _executable_memory() -> int:
    try:
        return os.memfd_create("i386", os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("i386", os.MFD_CLOEXEC)  # before Linux 6.3


@probe("x32")
def x32() -> Answer:
    """Make an x32 call."""
    if not _X86:
        return works(_NOT_X86)
    status = child_status(lambda: 0 if raw_syscall(_NR_X32_GETPID) == os.getpid() else 1)
    if status:
        return works("x32 programs do not run here, so that none escapes")
    return limited(
        "opens of x32 programs are reported, not rewritten", "build such programs for x86-64"
    )


@probe("io_uring")
def io_uring() -> Answer:
    """Set up a ring."""
    refusal = child_status(_set_up_ring)
    if refusal == errno.ENOSYS:
        return works("not in this kernel, or hidden, so that no open escapes through it")
    if refusal in (errno.EPERM, errno.EACCES, -signal.SIGSYS):
        return works("closed to us, so that no open escapes through it")
    return limited(
        "opens through io_uring are not seen; flagshim reports programs that set one up",
        "sysctl kernel.io_uring_disabled=2 closes it (Linux 6.6), or a seccomp profile",
    )


def _set_up_ring() -> int:
    parameters = bytes(120)
    try:
        os.close(raw_syscall(_NR_IO_URING_SETUP, 1, parameters))
    except OSError as error:
        return error.errno or 255
    return 0


@probe("openat2")
def openat2() -> Answer:
    """Look up / without leaving the kernel's memory."""
    refusal = child_status(_open_cached)
    if not refusal:
        return works("owners can be looked up in the kernel's memory (RESOLVE_CACHED)")
    if refusal < 0:
        cause = "a seccomp filter kills who uses openat2"
    elif refusal == errno.EINVAL:
        cause = "no RESOLVE_CACHED (Linux 5.12)"
    else:
        cause = f"no openat2: {os.strerror(refusal)}"
    return limited(
        f"{cause}; a refusal cannot be foreseen, and every refused open takes two more stops",
        "use Linux 5.12 or newer, or a container profile that allows openat2",
    )


def _open_cached() -> int:
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
    try:
        os.close(raw_syscall(_NR_OPENAT2, AT_FDCWD, b"/\0", how, len(how)))
    except OSError as error:
        return error.errno or 255
    return 0
