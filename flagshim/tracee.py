"""What can be learnt about another thread: its memory, directories, descriptors and name.

Everything goes by thread ID, never by thread group: after the leader has exited
/proc/TGID/cwd and /proc/TGID/fd fail while the other threads run on. Names come back as
bytes, because a tracee chooses them.
"""

import os

from flagshim.linux.files import AT_FDCWD, owner, owner_if_cached
from flagshim.linux.memory import read_memory, write_memory

PATH_MAX = 4096
_STATUS_SIZE = 8192
_FIRST_READ = 256  # almost every path is shorter, and one call reads it


def read_path(tid: int, address: int) -> bytes | None:
    """Read a NUL-terminated path argument; None where the memory cannot be read.

    Raises:
        ProcessLookupError: the thread is gone.
    """
    size = _FIRST_READ
    while True:
        try:
            data = read_memory(tid, address, size)
        except ProcessLookupError:
            raise
        except OSError:  # EFAULT, which the call will meet too; EPERM: non-dumpable
            return None
        end = data.find(b"\0")
        if end >= 0:
            return data[:end]
        if len(data) < size:  # its memory ends, which the call will meet too
            return None
        if size == PATH_MAX:
            return data
        size = PATH_MAX


def memory_or_none(tid: int, address: int, size: int) -> bytes | None:
    """Read memory (at most a page); None where not all of it can be read.

    Raises:
        ProcessLookupError: the thread is gone.
    """
    try:
        memory = read_memory(tid, address, size)
    except ProcessLookupError:
        raise
    except OSError:
        return None
    return memory if len(memory) == size else None


def force_memory(tid: int, address: int, data: bytes) -> None:
    """Write even where the thread could only read, by a private copy of the page (proc(5), mem)."""
    fd = os.open(f"/proc/{tid}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, address)
    finally:
        os.close(fd)


def try_write(tid: int, address: int, data: bytes) -> bool:
    """Write memory if it is there to be written.

    Raises:
        ProcessLookupError: the thread is gone.
    """
    try:
        write_memory(tid, address, data)
    except ProcessLookupError:
        raise
    except OSError:
        return False
    return True


def executable(tid: int) -> bytes:
    """Return the path of the thread's executable, or its comm where that is hidden."""
    try:
        return os.readlink(b"/proc/%d/exe" % tid)
    except OSError:
        return comm(tid)


def program_name(tid: int) -> bytes:
    """Return the base name of the thread's executable, or its comm where that is hidden."""
    return name_of(executable(tid))


def name_of(executable: bytes) -> bytes:
    """Return what a program is called whose executable has a path."""
    return os.path.basename(executable).removesuffix(b" (deleted)")


def names(tid: int) -> set[bytes]:
    """Return the names of a thread's program: of the file, and the one it was started under.

    They differ for sh, a link to dash: exec(2) sets comm (proc(5)) to what it was asked for.
    """
    return {program_name(tid), comm(tid)}


def comm(tid: int) -> bytes:
    """Return a thread's command name (proc(5), comm), "?" if it is gone."""
    try:
        with open(f"/proc/{tid}/comm", "rb") as file:
            return file.read().rstrip(b"\n")
    except OSError:
        return b"?"


def read_status(tid: int) -> bytes:
    """Return proc(5), status of a thread, up to its capabilities at least.

    Raises:
        OSError: the thread is gone.
    """
    fd = os.open(f"/proc/{tid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.read(fd, _STATUS_SIZE)
        while b"\nCapBnd:" not in status:  # up to 65,536 groups come before
            more = os.read(fd, _STATUS_SIZE)
            if not more:
                break
            status += more
        return status
    finally:
        os.close(fd)


def tracer_of(tid: int) -> int:
    """Return the PID of the process that traces a thread, 0 if none does."""
    return _number(tid, b"TracerPid:") or 0


def parent_of(tid: int) -> int:
    """Return the PID of a process's parent, 0 if it is gone."""
    return _number(tid, b"PPid:") or 0


def limit_of_descriptors(tid: int) -> int:
    """Return the soft RLIMIT_NOFILE of a thread, from proc(5), limits.

    Not by prlimit(2), which needs CAP_SYS_RESOURCE for somebody else's.

    Raises:
        OSError: it cannot be looked at.
    """
    with open(f"/proc/{tid}/limits", "rb") as file:
        line = next(line for line in file if line.startswith(b"Max open files "))
    return int(line.split()[3])  # never "unlimited": do_prlimit() in kernel/sys.c, nr_open


def has_no_new_privs(tid: int) -> bool:
    """Tell whether a thread is there and has no_new_privs set (prctl(2))."""
    return _number(tid, b"NoNewPrivs:") == 1


def start_of(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine did; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[19])  # starttime of proc(5)
    except OSError:
        return None


def has_seccomp_filter(tid: int) -> bool:
    """Tell whether a thread is there and has a filter (SECCOMP_MODE_FILTER, proc(5))."""
    return _number(tid, b"Seccomp:") == 2


def has_ended(tid: int) -> bool:
    """Tell whether a thread is gone, or will run no more (state Z or X, proc(5))."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in b"ZX"
    except OSError:
        return True


def wait_status_of_zombie(pid: int) -> int | None:
    """Return the wait status of a process that has ended and is not reaped yet, else None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return int(fields[49]) if fields[0] == b"Z" else None  # state, exit_code of proc(5)


def is_interruptible(tid: int) -> bool:
    """Tell whether a thread may run or be woken by a signal (not state D, Z or X, proc(5))."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in b"DZX"
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    """Tell whether a process has a thread that runs, though its leader may have ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file)
    except OSError:
        return False
    return fields[b"State"].split()[0] not in (b"Z", b"X") or int(fields[b"Threads"]) > 1


def threads_of(pid: int) -> set[int]:
    """Return the threads of a process, those that are ending too; none if it is gone."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return set()


def thread_group(tid: int) -> int:
    """Return the process that a thread belongs to.

    Raises:
        ProcessLookupError: the thread is gone, or /proc cannot be read.
    """
    found = _number(tid, b"Tgid:")
    if found is None:
        raise ProcessLookupError(tid)
    return found


def _number(tid: int, field: bytes) -> int | None:
    """Return a number of /proc/TID/status; None if the thread is gone."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return None


def fd_path(tid: int, fd: int) -> bytes | None:
    """Return what /proc says a descriptor is: a path, or a name such as "pipe:[4026]"."""
    try:
        return os.readlink(b"/proc/%d/fd/%d" % (tid, fd))
    except OSError:
        return None


def fd_owner(tid: int, fd: int) -> int | None:
    """Return the owner (uid) of an open file, without asking its filesystem anew."""
    try:
        return owner(b"/proc/%d/fd/%d" % (tid, fd))
    except OSError:
        return None


def fd_flags(tid: int, fd: int) -> int | None:
    """Return the open flags of a descriptor, from /proc/TID/fdinfo (octal, proc(5))."""
    try:
        file = os.open(b"/proc/%d/fdinfo/%d" % (tid, fd), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(file, PATH_MAX)  # flags is its second line
    except OSError:
        return None
    finally:
        os.close(file)
    start = text.find(b"\nflags:")
    return None if start < 0 else int(text[start + 7 : text.index(b"\n", start + 7)], 8)


def absolute_path(tid: int, dirfd: int, path: bytes, root: bytes) -> bytes:
    """Join a path argument to the directory it starts from, as readlink(2) of /proc tells it.

    Nothing is looked up: symbolic links and ".." stay. Where the directory is hidden the
    path stays relative.

    Args:
        tid: the thread that uses the path.
        dirfd: where a relative path starts, or AT_FDCWD.
        path: as the thread gave it.
        root: the thread's root directory, where absolute paths start.
    """
    if path.startswith(b"/"):
        return path if root == b"/" else root + path
    try:
        base = os.readlink(directory_of(tid, dirfd))
    except OSError:
        return path
    return base.rstrip(b"/") + b"/" + path if path else base


def owner_foreseen(tid: int, dirfd: int, path: bytes, follow: bool) -> int | None:
    """Return the owner of the file that a path argument names, if no filesystem has to be asked.

    A relative path starts from the directory itself, which need not be where its name says:
    it may be in a mount that is not ours, or in none (open_tree(2)). Only for a thread that
    shares our view of "/".
    """
    if path.startswith(b"/"):
        return owner_if_cached(AT_FDCWD, path, follow)
    try:
        directory = os.open(directory_of(tid, dirfd), os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return owner_if_cached(directory, path, follow)
    finally:
        os.close(directory)


def root_of(tid: int) -> bytes:
    """Return a thread's root directory, "/" where it is hidden."""
    try:
        return os.readlink(b"/proc/%d/root" % tid)
    except OSError:
        return b"/"


def directory_of(tid: int, dirfd: int) -> bytes:
    """Return the name, below /proc, of the directory that a relative path starts from."""
    return b"/proc/%d/cwd" % tid if dirfd == AT_FDCWD else b"/proc/%d/fd/%d" % (tid, dirfd)
