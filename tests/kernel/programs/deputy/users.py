"""User namespaces, groups, and threads that are not who their process is."""

import contextlib
import ctypes
import os
import struct
import sys
import threading

from acting import (
    CLONE_NEWUSER,
    NOBODY,
    RW,
    SETFSGID,
    SETFSUID,
    SETGROUPS,
    SETRESGID,
    SETRESUID,
    aside,
    be,
    be_nobody,
    call,
    folder,
    libc,
    tried,
    unshare,
)


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
