"""argv: SCENE plain|noatime FOLDER. Opens files as somebody who may not open all of them.

Starts as root, in FOLDER, which the test has filled. Prints what came of each open: the error,
or what is in the file. `noatime` adds O_NOATIME to every one of them.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable

NOBODY = 65534
SETRESUID, SETRESGID, SETFSUID, SETFSGID, SETGROUPS, CLONE = 117, 119, 122, 123, 116, 56
OPENAT2, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 437, 444, 445, 446
CLONE_PARENT, CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x8000, 0x20000, 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
O_TMPFILE_ALONE = os.O_TMPFILE & ~os.O_DIRECTORY
NO_MOUNTS = 77

scene, flag, folder = sys.argv[1:]
N = os.O_NOATIME if flag == "noatime" else 0
R, W, RW = os.O_RDONLY | N, os.O_WRONLY | N, os.O_RDWR | N
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(number: int, *arguments: object) -> int:
    """Make a system call by this thread alone, which libc and Python would not."""
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return int(result)


def what(fd: int) -> str:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        return f"a directory, {os.fstat(fd).st_size > 0}"
    if not stat.S_ISREG(mode):
        return "special"
    try:
        return repr(os.pread(fd, 8, 0))
    except OSError as error:
        return f"{errno.errorcode[error.errno or 0]} of {os.fstat(fd).st_size}"


def said(label: str, open_: Callable[[], int]) -> str:
    try:
        fd = open_()
    except OSError as error:
        text = errno.errorcode[error.errno or 0]
    else:
        text = what(fd)
        os.close(fd)
    print(label, "=", text, flush=True)
    return text


def tried(path: str, flags: int = R, dir_fd: int | None = None, label: str = "") -> str:
    return said(
        f"{label or path.removeprefix(folder)} {flags & ~N:o}",
        lambda: os.open(path, flags, 0o600, dir_fd=dir_fd),
    )


def be(uid: int, gid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def be_nobody() -> None:
    be(NOBODY, NOBODY, [])


def aside(work: Callable[[], object]) -> None:
    """Do something in a child."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    if status:
        print("child", status)


def unshare(flags: int) -> None:
    if libc.unshare(flags):
        sys.exit(NO_MOUNTS)


def mount(source: str, target: str, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), None, flags, None):
        sys.exit(NO_MOUNTS)


def openat2(
    path: str, flags: int, resolve: int = 0, mode: int = 0, at: int = -100,
    size: int = 24, tail: bytes = b"",
) -> int:  # fmt: skip
    how = ctypes.create_string_buffer(struct.pack("=QQQ", flags, mode, resolve) + tail)
    return call(OPENAT2, at, path.encode(), how, size)


# --- roots ------------------------------------------------------------------------------


def chroot() -> None:
    """What leads out of the jail must not lead into the supervisor's root."""
    out = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    os.chroot(f"{folder}/jail")
    os.chdir("/sub")
    be_nobody()
    climb = "../../../../../../../../.."
    for path in (
        "/inner", "../inner", f"{climb}/inner", "inner", "/absolute", "../absolute", "/climbing",
        "../climbing", "/chain", "below", "relative-below", "/sub/relative-below",
        f"{climb}{folder}/outside", f"{folder}/outside", "../outside",
        "/proc/self/status", "/sub/../../inner", "../relative", "/secret", "/to-secret", ".", "/",
        "../hidden/inner", "/etc/passwd", f"{climb}/etc/passwd",
    ):  # fmt: skip
        tried(path)
        tried(path, W)
        tried(path, RW | os.O_CREAT)
        tried(path, R | os.O_NOFOLLOW)
        for resolve in (0x08, 0x10, 0x01, 0x04):
            said(f"{path} {resolve:x}", lambda p=path, r=resolve: openat2(p, R, r))
    for path in ("outside", "secret", "jail/absolute", "jail/../outside", "../etc/passwd"):
        tried(path, dir_fd=out, label=f"out {path}")
        tried(path, RW | os.O_CREAT, dir_fd=out, label=f"out {path}")
    os.chdir("/")
    os.fchdir(out)  # a working directory outside of the root
    for path in ("outside", "secret", "jail/absolute", "jail/../outside", "../../etc/passwd"):
        tried(path)


def mounts() -> None:
    """A file that is mounted over for the program alone is not the host's."""
    before = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    unshare(CLONE_NEWNS)
    mount("none", "/", MS_REC | MS_PRIVATE)
    mount(f"{folder}/other", f"{folder}/file", MS_BIND)
    mount(f"{folder}/jail", f"{folder}/locked", MS_BIND)
    mount(f"{folder}/locked-secret", f"{folder}/open", MS_BIND)
    mount(f"{folder}/secret", f"{folder}/outside", MS_BIND)
    be_nobody()
    names = ("file", "locked/inner", "locked/sub/../inner", "open/secret", "outside", "other",
             "jail/../file", "jail/absolute", "locked/absolute", "jail/to-secret")  # fmt: skip
    for name in names:
        tried(f"{folder}/{name}")
        tried(f"{folder}/{name}", RW | os.O_CREAT)
        tried(name, dir_fd=before, label=f"before {name}")
        tried(name, label=f"from here {name}")


# --- users ------------------------------------------------------------------------------


def userns() -> None:
    """Capabilities inside of a user namespace are none outside of it."""
    for inside in ("0 65534 1", "0 65534 1\n1 1 1", "0 0 65536"):
        from_work, to_mapper = os.pipe()
        mapped, say_mapped = os.pipe()

        def work(inside: str = inside, to_mapper: int = to_mapper, mapped: int = mapped) -> None:
            asks, asked = os.pipe()
            done, do = os.pipe()
            be_nobody()
            parent = os.fork()
            if parent == 0:
                unshare(CLONE_NEWUSER)
                os.write(asked, b"x")
                os.read(done, 1)
                for path in ("file", "secret", "of-1", "of-1-secret", "of-1-group-2",
                             "of-1-secret-group-2", "mine", "mine-locked", "writable"):  # fmt: skip
                    tried(f"{folder}/{path}", label=f"{inside!r} {path}")
                    tried(f"{folder}/{path}", RW, label=f"{inside!r} {path}")
                with contextlib.suppress(OSError):
                    os.setresgid(1, 1, 1)
                    os.setresuid(1, 1, 1)
                for path in ("file", "secret", "of-1", "of-1-secret", "mine", "mine-locked"):
                    tried(f"{folder}/{path}", label=f"{inside!r} then {path}")
                with contextlib.suppress(OSError):
                    os.chroot(f"{folder}/jail")
                for path in ("/absolute", f"{folder}/outside", "/../outside"):
                    tried(path, label=f"{inside!r} chroot {path.removeprefix(folder)}")
                sys.stdout.flush()
                os._exit(0)
            os.read(asks, 1)
            sys.stdout.flush()
            os.write(to_mapper, struct.pack("=I", parent))
            os.read(mapped, 1)
            os.write(do, b"x")
            os.waitpid(parent, 0)

        mapper = os.fork()
        if mapper == 0:  # root's
            (pid,) = struct.unpack("=I", os.read(from_work, 4))
            for name in ("uid_map", "gid_map"):
                fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
                os.write(fd, inside.encode())
            os.write(say_mapped, b"x")
            os._exit(0)
        aside(work)
        os.waitpid(mapper, 0)


GROUPS = 3001, 3002, 3003


def groups() -> None:
    """Groups allow, and deny; those of the last one must not stay."""
    a, b, c = GROUPS
    paths = ("of-a", "denied-a", "of-b", "denied-b", "dir-a/inner", "dir-b/inner",
             "dir-set-a/inner", "file", "secret")  # fmt: skip
    many = list(range(5001, 5001 + 997))
    for round_ in range(2):
        for gid, more in (
            (NOBODY, []), (NOBODY, [a]), (NOBODY, [b]), (NOBODY, []), (a, []), (b, [a, c]),
            (c, [c]), (NOBODY, [*many, a]), (NOBODY, many), (NOBODY, [a, b, c]), (NOBODY, []),
        ):  # fmt: skip
            aside(lambda gid=gid, more=more: (be(NOBODY, gid, more), _each(paths, gid, more)))
            if round_:
                aside(lambda: _each(paths, 0, []))  # and root's in between
            aside(lambda: (os.setgroups([]), _drop_all_capabilities(), _each(paths, 0, [])))


def _each(paths: tuple[str, ...], gid: int, more: list[int]) -> None:
    for path in paths:
        tried(f"{folder}/{path}", label=f"{gid} {more[:3]} {len(more)} {path}")
        tried(f"{folder}/{path}", RW | os.O_CREAT, label=f"{gid} {more[:3]} {len(more)} {path}")


def _drop_all_capabilities() -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    libc.capset(header, ctypes.create_string_buffer(24))


def threads() -> None:
    """Who a thread is, its siblings are not."""
    paths = ("file", "secret", "of-a", "denied-a", "dir-a/inner", "of-1-secret", "mine-locked")
    lock = threading.Lock()

    def be_here(kind: str) -> None:
        a, *_ = GROUPS
        if kind == "group":
            call(SETGROUPS, 1, ctypes.create_string_buffer(struct.pack("=I", a)))
        elif kind != "root":
            call(SETGROUPS, 0, 0)
        if kind == "fsgid":
            call(SETFSGID, a)
            call(SETFSUID, 1)
        elif kind == "fsuid":  # not of the euid, which has capabilities
            call(SETFSUID, NOBODY)
        elif kind == "fsuid-0":  # euid nobody's, and root's files are its own
            call(SETRESUID, -1, NOBODY, -1)
            call(SETFSUID, 0)
        elif kind == "no-capabilities":
            _drop_all_capabilities()
        elif kind in ("nobody", "group", "one"):
            call(SETRESGID, NOBODY, NOBODY, NOBODY)
            uid = 1 if kind == "one" else NOBODY
            call(SETRESUID, uid, uid, uid)

    kinds = ("root", "nobody", "group", "one", "fsuid", "fsgid", "fsuid-0", "no-capabilities")
    turns = [threading.Event() for _ in kinds]

    def work(number: int) -> None:
        be_here(kinds[number])
        for round_ in range(3):
            turns[number].wait(30)
            turns[number].clear()
            with lock:
                for path in paths:
                    tried(f"{folder}/{path}", label=f"{round_} {kinds[number]} {path}")
            turns[(number + 1) % len(turns)].set()

    every = [threading.Thread(target=work, args=[n]) for n in range(len(kinds))]
    for thread in every:
        thread.start()
    turns[0].set()
    for thread in every:
        thread.join()


# --- names that mean the process itself --------------------------------------------------


def magic() -> None:
    secret = os.open(f"{folder}/secret", os.O_RDONLY)
    os.dup2(secret, 0)
    file = os.open(f"{folder}/file", os.O_RDONLY)
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    locked = os.open(f"{folder}/locked-secret", os.O_PATH | os.O_DIRECTORY)
    os.environ["MARK"] = "1"
    be_nobody()
    path = f"{folder}/file"
    for name in (
        "/proc/self/environ", "/proc/thread-self/environ", "/proc/self/maps", "/proc/self/cmdline",
        f"/proc/self/fd/{secret}", f"/dev/fd/{secret}", f"/proc/thread-self/fd/{secret}",
        "/dev/stdin", "/proc/self/fd/0", f"/proc/self/fd/{file}", f"/dev/fd/{file}",
        f"/proc/self/root{path}", "/proc/self/cwd/file", "/proc/self/cwd/secret",
        f"/proc/self/fd/{directory}/file", f"/proc/self/fd/{directory}/secret",
        f"/proc/self/fd/{locked}/secret", f"/proc/thread-self/root{path}", "/proc/self/exe",
        f"/proc/{os.getpid()}/fd/{secret}", f"/proc/{os.getpid()}/environ", "/proc/self/fd",
        "/proc/self/task", f"/proc/self/../../{path}", "/proc/version", "/proc/self/ns/user",
        "/proc/sys/kernel/core_pattern", "/sys/kernel/mm/transparent_hugepage/enabled",
        "/proc/1/root/etc/passwd", "/proc/1/environ", "/proc/1/fd", "link-to-fd", "link-to-stdin",
        "link-to-environ", "link-to-cwd/secret", "link-to-cwd/file",
    ):  # fmt: skip
        label = name.replace(str(os.getpid()), "PID").replace(folder, "")
        tried(name, label=label)
        tried(name, W, label=label)
    ours = {os.getppid()}  # of the supervisors'
    with contextlib.suppress(OSError):
        for pid in tuple(ours):
            with open(f"/proc/{pid}/task/{pid}/children") as file_:
                ours |= {int(word) for word in file_.read().split()}
    ours -= {os.getpid()}
    for below in ("environ", "root/etc/passwd", "cwd", "exe", "fd", "maps", "mem", "ns/user",
                  "map_files", "auxv", "fdinfo", *(f"fd/{n}" for n in range(3, 23))):  # fmt: skip
        results = set()
        for pid in sorted(ours):
            try:
                fd = os.open(f"/proc/{pid}/{below}", R)
            except OSError as error:
                results.add(errno.errorcode[error.errno or 0])
            else:
                results.add(what(fd))
                os.close(fd)
        # A descriptor that is not there cannot be told from one that may not be looked at.
        print("supervisors", below, "=", " ".join(sorted(results - {"ENOENT"})), flush=True)


# --- kinds of files -----------------------------------------------------------------------


def special() -> None:
    """Nobody touches what is not a file: no plain run, for FIFOs wait."""
    fifo_seen = os.open(f"{folder}/fifo", os.O_RDONLY | os.O_NONBLOCK)
    be_nobody()
    for path in ("fifo", "socket", "null", "zero", "full", "link-to-fifo"):
        for flags in (R, W, RW, W | os.O_NONBLOCK, W | os.O_TRUNC, W | os.O_CREAT):
            # The end that is open lets none of them wait natively, either.
            if not (flags & os.O_ACCMODE == os.O_RDONLY and "fifo" in path and not N):
                tried(f"{folder}/{path}", flags)
    try:
        print("fifo read", os.read(fifo_seen, 1))
    except BlockingIOError:
        print("fifo read", "a writer")


def truncate() -> None:
    os.mkdir(f"{folder}/scratch")
    for name, mode in (("all", 0o666), ("read", 0o644), ("none", 0o600), ("write", 0o622)):
        with open(f"{folder}/scratch/{name}", "w") as file:
            file.write("content\n")
        os.chmod(f"{folder}/scratch/{name}", mode)
    size = {name: os.stat(f"{folder}/scratch/{name}") for name in ("all", "read", "none", "write")}
    assert all(facts.st_size for facts in size.values())
    be_nobody()

    def sizes(label: str) -> None:
        for name in size:
            path = f"{folder}/scratch/{name}"
            print(label, name, "=", os.stat(path).st_size, flush=True)

    for name in ("read", "none"):
        for flags in (W, RW, R):
            tried(f"{folder}/scratch/{name}", flags | os.O_TRUNC)
    tried(f"{folder}/scratch", R | os.O_TRUNC)
    tried(f"{folder}/scratch/none", R | os.O_TRUNC | os.O_CREAT)
    sizes("refused")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken, hard))
    fill = []
    with contextlib.suppress(OSError):
        while True:
            fill.append(os.dup(1))
    for flags in (R, W | os.O_TRUNC, RW | os.O_TRUNC, R | os.O_TRUNC):
        tried(f"{folder}/scratch/all", flags, label="full")
        said(f"full openat2 {flags & ~N:o}", lambda f=flags: openat2(f"{folder}/scratch/all", f))
    sizes("full")
    for fd in fill:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    tried(f"{folder}/scratch/write", W | os.O_TRUNC)
    tried(f"{folder}/scratch/all", RW | os.O_TRUNC)
    sizes("at the end")


def create() -> None:
    for name, mode in (("mine", 0o755), ("sticky", 0o1777), ("sticky-group", 0o1775)):
        os.mkdir(f"{folder}/made-{name}")
        path = f"{folder}/made-{name}"
        for file in ("theirs", "of-1"):
            with open(f"{path}/{file}", "w") as file_:
                file_.write("content\n")
            os.chmod(f"{path}/{file}", 0o666)
        os.chown(f"{path}/of-1", 1, 1)
        os.mkdir(f"{path}/dir")
        os.symlink("absent", f"{path}/dangling")
        os.symlink("theirs", f"{path}/link")
        os.symlink("dir", f"{path}/link-to-dir")
        os.mkfifo(f"{path}/fifo", 0o666)
        os.chmod(path, mode)
        os.chown(path, NOBODY if name == "mine" else 0, NOBODY)
    be_nobody()
    c, x, d = os.O_CREAT, os.O_EXCL, os.O_DIRECTORY
    for where in ("mine", "sticky", "sticky-group"):
        for name in (
            "theirs", "of-1", "dir", "dir/", "dir/.", "dir/..", ".", "..", "theirs/", "theirs/x",
            "link", "link/", "dangling", "link-to-dir", "link-to-dir/", "link-to-dir/../theirs",
            "absent/x", "dir/../theirs", "x" * 256,
        ):  # fmt: skip
            path = f"{folder}/made-{where}/{name}"
            for more in (c, c | x, c | d, c | os.O_NOFOLLOW, d, x, c | os.O_NONBLOCK):
                for access in (R, RW):
                    tried(path, access | more, label=f"{where} {name[:20]}")
            with contextlib.suppress(OSError):
                os.unlink(f"{folder}/made-mine/absent")
        for more in (os.O_TMPFILE, O_TMPFILE_ALONE, os.O_TMPFILE | c, O_TMPFILE_ALONE | c):
            tried(f"{folder}/made-{where}", RW | more, label=f"{where} tmpfile")
            tried(f"{folder}/made-{where}/theirs", RW | more, label=f"{where} tmpfile theirs")
            tried(f"{folder}/made-{where}", R | more, label=f"{where} tmpfile")
    for where in ("mine", "sticky", "sticky-group"):
        tried(f"{folder}/made-{where}/new", RW | c, label=f"{where} new")
        tried(f"{folder}/made-{where}/new-exclusive", RW | c | x, label=f"{where} new")
        tried(f"{folder}/made-{where}/new-exclusive", RW | c | x, label=f"{where} again")
        print(where, "has =", *sorted(os.listdir(f"{folder}/made-{where}")))


def resolve() -> None:
    be_nobody()
    here = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    sub = os.open(f"{folder}/jail/sub", os.O_PATH | os.O_DIRECTORY)
    paths = ("file", f"{folder}/file", "../inner", "jail/relative", "jail/absolute", "jail/chain",
             "jail/climbing", "secret", "/proc/self/cwd/file", "/dev/null", "..", ".", "jail",
             "jail/../file", "link-to-fd", "absent", "jail/relative/", "../../file")  # fmt: skip
    for bits in range(0x40):
        for path in paths:
            for at, name in ((here, "here"), (sub, "sub")):
                label = f"{bits:x} {name} {path.replace(folder, '')}"
                said(label, lambda p=path, b=bits, a=at: openat2(p, R, b, at=a))
        said(f"{bits:x} create", lambda b=bits: openat2("file", R | os.O_CREAT, b, 0o600, here))
        said(f"{bits:x} trunc", lambda b=bits: openat2("writable", RW | os.O_TRUNC, b, 0, here))
    file = f"{folder}/file"
    for label, work in {
        "mode": lambda: openat2(file, R, mode=0o600),
        "bad mode": lambda: openat2(file, R | os.O_CREAT, mode=0o100600),
        "flags": lambda: openat2(file, R | 1 << 31),
        "flags high": lambda: openat2(file, R | 1 << 40),
        "resolve": lambda: openat2(file, R, 0x40),
        "resolve high": lambda: openat2(file, R, 1 << 40),
        "small": lambda: openat2(file, R, size=16),
        "zero": lambda: openat2(file, R, size=0),
        "odd": lambda: openat2(file, R, size=25),
        "tail of zeros": lambda: openat2(file, R, size=64, tail=bytes(64)),
        "tail": lambda: openat2(file, R, size=64, tail=bytes(8) + b"x" + bytes(64)),
        "tail end": lambda: openat2(file, R, size=64, tail=bytes(39) + b"x" + bytes(64)),
        "behind the tail": lambda: openat2(file, R, size=64, tail=bytes(40) + b"x" * 64),
        "huge": lambda: openat2(file, R, size=8192, tail=bytes(8192)),
        "path": lambda: openat2(file, R | os.O_PATH),
        "accmode": lambda: openat2(file, R | os.O_ACCMODE),
        "empty": lambda: openat2("", R),
        "bad directory": lambda: openat2("file", R, at=4711),
        "file as directory": lambda: openat2("file", R, at=os.open(file, os.O_PATH)),
        "tmpfile": lambda: openat2(folder, RW | os.O_TMPFILE, mode=0o600),
        "tmpfile alone": lambda: openat2(folder, RW | O_TMPFILE_ALONE, mode=0o600),
        "create directory": lambda: openat2(file, R | os.O_CREAT | os.O_DIRECTORY, mode=0o600),
        "long": lambda: openat2("/" * 4095, R),
        "too long": lambda: openat2("/" * 4096, R),
        "bad pointer": lambda: call(OPENAT2, -100, file.encode(), 8, 24),
        "bad path": lambda: call(
            OPENAT2, -100, 8, ctypes.create_string_buffer(struct.pack("=QQQ", R, 0, 0)), 24
        ),
    }.items():
        said(label, work)


def lease() -> None:
    """Opens wait for a lease, but no other open waits for them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO, signal.SIGUSR1, signal.SIGUSR2])
    ended, end = os.pipe()
    holder = os.fork()
    if holder == 0:
        fd = os.open(f"{folder}/leased", os.O_RDWR)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.kill(os.getppid(), signal.SIGUSR1)
        signal.sigtimedwait([signal.SIGIO], 5)
        os.kill(os.getppid(), signal.SIGUSR2)
        os.read(ended, 1)
        print("while it was held =", os.pread(fd, 8, 0), flush=True)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os._exit(0)
    signal.sigtimedwait([signal.SIGUSR1], 5)
    be_nobody()
    tried(f"{folder}/file", label="before")  # the mount is known to be local from now on
    thread = threading.Thread(
        target=lambda: tried(f"{folder}/leased", RW | os.O_TRUNC, label="waits")
    )
    thread.start()
    signal.sigtimedwait([signal.SIGUSR2], 6)
    tried(f"{folder}/file", label="another, meanwhile")
    tried(f"{folder}/leased", RW | os.O_NONBLOCK, label="does not wait")
    os.write(end, b"x")
    thread.join()
    os.waitpid(holder, 0)


# --- Landlock -----------------------------------------------------------------------------


def restrict() -> None:
    """Let this process read nothing but below FOLDER/jail from now on."""
    libc.prctl(38, 1, 0, 0, 0)
    attr = ctypes.create_string_buffer(struct.pack("=Q", 1 << 2 | 1 << 1), 8)  # read, write files
    rules = call(LANDLOCK_CREATE, attr, 8, 0)
    allowed = os.open(f"{folder}/jail", os.O_PATH | os.O_CLOEXEC)
    path = ctypes.create_string_buffer(struct.pack("=Qi", 1 << 2, allowed), 12)
    call(LANDLOCK_ADD, rules, 1, path, 0)
    call(LANDLOCK_RESTRICT, rules, 0)


def landlock() -> None:
    be_nobody()
    tried(f"{folder}/file", label="before")

    def both(label: str) -> None:
        tried(f"{folder}/file", label=f"{label}: denied")
        tried(f"{folder}/jail/inner", label=f"{label}: allowed")

    def deeper() -> None:
        aside(lambda: both("grandchild"))
        both("child")

    def confined(work: Callable[[], object]) -> Callable[[], None]:
        return lambda: (restrict(), work())  # type: ignore[return-value]

    done, say_done = os.pipe()

    def orphan(label: str) -> None:
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                os.sched_yield()
            both(label)
            os.write(say_done, b"x")
            os._exit(0)
        os._exit(0)

    def sibling() -> None:
        """A child of ours whose parent is ours."""
        if call(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0) == 0:
            both("sibling")
            os.write(say_done, b"x")
            os._exit(0)
        os._exit(0)

    aside(confined(deeper))
    aside(confined(lambda: orphan("orphan")))
    os.read(done, 1)
    aside(confined(sibling))
    os.read(done, 1)
    with contextlib.suppress(ChildProcessError):
        os.wait()
    libc.prctl(36, 1, 0, 0, 0)
    aside(confined(lambda: orphan("adopted")))
    os.read(done, 1)
    with contextlib.suppress(ChildProcessError):
        os.wait()
    libc.prctl(36, 0, 0, 0, 0)

    def in_pid_namespace() -> None:
        """Its first process adopts."""
        unshare(CLONE_NEWUSER | CLONE_NEWPID)
        if os.fork() == 0:
            if os.fork() == 0:
                restrict()
                orphan("adopted by the first of a PID namespace")
            os.wait()
            os.wait()
            os._exit(0)
        os.wait()

    aside(in_pid_namespace)
    os.read(done, 1)
    both("never confined")
    thread = threading.Thread(target=lambda: (restrict(), both("thread"), aside(deeper)))
    thread.start()
    thread.join()


# --- descriptors ---------------------------------------------------------------------------


def setfl() -> None:
    """Through a descriptor one can do what one could, and no more."""
    fds = {
        "file": os.open(f"{folder}/file", os.O_RDONLY),
        "secret": os.open(f"{folder}/secret", os.O_RDWR | os.O_APPEND),
        "path": os.open(f"{folder}/file", os.O_PATH),
        "directory": os.open(folder, os.O_RDONLY),
        "socket": socket.socketpair()[0].detach(),
        "pipe": os.pipe()[0],
        "closed": 4711,
        "negative": -100,
    }
    be_nobody()
    for name, fd in fds.items():
        for more in (0, os.O_NONBLOCK, os.O_APPEND, os.O_ASYNC, os.O_DIRECT, os.O_CREAT):
            try:
                call(72, fd, fcntl.F_SETFL, N | more)  # whatever the descriptor
                result = "0"
            except OSError as error:
                result = errno.errorcode[error.errno or 0]
            print(name, oct(more), "=", result, flush=True)


# --- calls that are like others before ------------------------------------------------------


def as_(uid: int, gid: int = 0) -> None:
    """Be somebody for now; without setgroups(2), after which each thread is looked at anew."""
    os.setresuid(0, 0, 0)
    os.setresgid(0, gid, 0)
    os.setresuid(0, uid, 0)


def again() -> None:
    """Just like those before, while one thing at a time is not as it was."""
    a, b, _ = GROUPS
    paths = (
        "file", "file", "of-1-secret", "of-1", "mine", "secret", "of-a", "denied-a", "dir-a/inner",
        "jail", "absent", "file/x", "jail/absolute", "link-to-environ", "link-to-fd", "link-to-cwd",
        "link-to-fifo", "fifo", "null", "zero", "full", "socket", "/proc/version", "",
    )  # fmt: skip

    def each(label: str) -> None:
        for path in paths:
            tried(path, R | os.O_NONBLOCK, label=f"{label} {path}")
            tried(path, R | os.O_NONBLOCK | os.O_NOFOLLOW, label=f"{label} {path}")
            tried(path, R | os.O_NONBLOCK | os.O_DIRECTORY, label=f"{label} {path}")
            tried(path, W | os.O_NONBLOCK | os.O_CLOEXEC, label=f"{label} {path}")

    for uid, gid in ((1, 0), (2, 0), (1, a), (2, a), (1, b), (NOBODY, 0), (1, 0), (0, 0), (1, 0)):
        as_(uid, gid)
        each(f"{uid} {gid}")
    for fsuid, fsgid in ((1, 0), (2, a), (1, a)):
        as_(0)
        call(SETFSGID, fsgid)
        call(SETFSUID, fsuid)
        each(f"fs {fsuid} {fsgid}")
    for capability in (2, 3, None, 1, None):  # DAC_READ_SEARCH, FOWNER, DAC_OVERRIDE
        as_(1)
        _have_effective(0 if capability is None else 1 << capability)
        each(f"capability {capability}")
    as_(1)
    for where in ("jail", "dir-set-a", ".", "dir-a"):
        as_(0)
        os.chdir(f"{folder}/{where}")
        as_(1)
        tried("inner", label=f"in {where} inner")
    os.chdir(folder)
    at = os.open("jail", os.O_RDONLY)
    for where in ("jail", "jail/sub", "file", None):
        if where is None:
            os.close(at)
        else:
            other = os.open(where, os.O_RDONLY)
            os.dup2(other, at)
            os.close(other)
        for name in ("inner", "below", "../file", f"{folder}/file"):
            tried(name, dir_fd=at, label=f"at {where} {name}")
    aside(_in_another_root)
    aside(_under_another_mount)
    aside(lambda: (tried(f"{folder}/file"), tried(f"{folder}/file"), restrict(),
                   tried(f"{folder}/file", label="confined: file")))  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    tried(f"{folder}/file", label="no room")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _have_effective(capabilities: int) -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    now = ctypes.create_string_buffer(24)
    libc.capget(header, now)
    _, low, _, _, high, _ = struct.unpack("=6I", now.raw[:24])
    if libc.capset(header, struct.pack("=6I", capabilities, low, 0, 0, high, 0)):
        raise OSError(ctypes.get_errno(), "capset")


def _in_another_root() -> None:
    for _ in range(3):
        tried(f"{folder}/outside")
    as_(0)
    os.chroot(f"{folder}/jail")
    as_(1)
    for _ in range(3):
        tried(f"{folder}/outside", label="jailed")
    tried("/inner", label="jailed inner")


def _under_another_mount() -> None:
    for _ in range(3):
        tried(f"{folder}/file")
    as_(0)
    unshare(CLONE_NEWNS)
    mount("none", "/", MS_REC | MS_PRIVATE)
    mount(f"{folder}/secret", f"{folder}/file", MS_BIND)
    mount(f"{folder}/of-1-secret", f"{folder}/other", MS_BIND)
    as_(1)
    for _ in range(3):
        tried(f"{folder}/file", label="mounted file")
        tried(f"{folder}/other", label="mounted other")


def descriptors() -> None:
    """Opens of every kind and end, again and again, whenever a line is read."""
    be_nobody()
    here = os.open(folder, os.O_RDONLY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for _ in sys.stdin:
        for _ in range(101):
            for path in ("file", "secret", "absent", "fifo", "null", "link-to-fd", "jail", "socket",
                         "jail/absolute", "/proc/version", "writable", "file/x"):  # fmt: skip
                for flags in (R, RW | os.O_TRUNC, R | os.O_CREAT, R | os.O_DIRECTORY):
                    with contextlib.suppress(OSError):
                        os.close(os.open(path, flags | os.O_NONBLOCK, dir_fd=here))
            for bits in (0x08, 0x10, 0x20, 0x40):
                with contextlib.suppress(OSError):
                    os.close(openat2("file", R, bits, at=here))
            for fd in (here, 4711):
                with contextlib.suppress(OSError):
                    call(72, fd, fcntl.F_SETFL, N)
            resource.setrlimit(resource.RLIMIT_NOFILE, (here + 1, hard))
            with contextlib.suppress(OSError):
                os.close(os.open("file", R))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print("done", flush=True)


os.chdir(folder)
globals()[scene]()
