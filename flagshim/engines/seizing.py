"""Becoming the tracer of processes that run already."""

import os
from collections.abc import Callable, Iterable

from flagshim import tracee
from flagshim.linux.ptrace import ptrace_seize

_ROUNDS = 1009
"""How often the list of threads is read at most until it has no new ones."""


def seize_process(pid: int, options: int, seized: Callable[[int], None]) -> None:
    """Seize every thread of a process; those that a seized one starts come by themselves.

    Args:
        pid: of any of its threads.
        options: PTRACE_O_*.
        seized: called with the ID of each thread once it is ours.

    Raises:
        OSError: a thread that is there cannot be traced.
    """
    done: set[int] = set()
    for _ in range(_ROUNDS):
        new = tracee.threads_of(pid) - done
        if not new:
            return
        for tid in new:
            done.add(tid)
            try:
                ptrace_seize(tid, options)
            except ProcessLookupError:
                continue
            except OSError:
                if tracee.has_ended(tid):
                    continue
                if tracee.tracer_of(tid) != os.getpid():
                    raise
                # else a child of one that we had seized: it came by itself
            seized(tid)


def descendants(pids: Iterable[int], wanted: Callable[[int], bool]) -> set[int]:
    """Return the children of processes, their children, and so on, as far as they are wanted."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            children.setdefault(tracee.parent_of(int(name)), []).append(int(name))
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found and wanted(pid):
                found.add(pid)
                waiting.append(pid)
    return found
