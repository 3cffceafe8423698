"""Files of other kinds than usual, and opens that change or make them."""

import contextlib
import fcntl
import os
import resource
import signal
import threading

from acting import NOBODY, O_TMPFILE_ALONE, RW, N, R, W, be_nobody, folder, openat2, said, tried


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
