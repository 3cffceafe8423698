"""Landlock."""

import contextlib
import ctypes
import os
import signal
import struct
import threading
from collections.abc import Callable

from acting import (
    CLONE,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_PARENT,
    LANDLOCK_ADD,
    LANDLOCK_CREATE,
    LANDLOCK_RESTRICT,
    aside,
    be_nobody,
    call,
    folder,
    libc,
    tried,
    unshare,
)


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
