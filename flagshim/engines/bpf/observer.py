"""Opens of some or all processes, as the kernel tells of them when they return."""

import errno
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from flagshim import tracee
from flagshim.engines.bpf.program import Program, check_privileges, find_tracepoints
from flagshim.engines.bpf.records import COMM_SIZE, ERRNOS, MISSES, SKIPPED, RawOpen, unpack_open
from flagshim.errors import FlagshimError
from flagshim.linux.memory import memory_at

_CALLS = {
    "open": "open_exit",
    "openat": "openat_exit",
    "openat2": "openat2_exit",
    "open_by_handle_at": "handle_exit",
    "fcntl": "fcntl_exit",
}
"""Functions of bpf/opens.c by the calls whose return they look at."""
_OPTIONAL = ("open", "openat2")
"""aarch64 never had the one, kernels before 5.6 not the other."""
_BATCH = 10_007
"""Records taken at a time: a storm that never ends is not to keep us from everything else."""

ANY_FAILURE = tuple(range(1, ERRNOS))


@dataclass(frozen=True)
class Selection:
    """Which opens are told of. The kernel leaves out the others, and counts them."""

    pids: tuple[int, ...] = ()
    """These processes, and what they start from then on."""
    cgroup: str | None = None
    """A directory of the cgroup v2 hierarchy: what is in it or below it, too."""
    all: bool = False
    names: tuple[str, ...] = ()
    """Only threads with such a command name, of 15 bytes at most; empty: with any."""
    errnos: tuple[int, ...] = (errno.EPERM, errno.EACCES)
    """Only calls that end so; 0 is success."""
    flags: int = 0
    """Only calls with one of these open flags; 0: with any."""


class Observer:
    """The programs of bpf/opens.c at work. A context manager: nothing is left behind."""

    def __init__(self, selection: Selection, entries: bool = False) -> None:
        """Load them; `start` has them look.

        Args:
            selection: which opens.
            entries: whether to look at calls when they begin, too, and so to know of each
                whether the kernel began it; and, after an EPERM, at what the thread does next.

        Raises:
            FlagshimError: that cannot be done here, or there is no such cgroup.
        """
        check_privileges()
        find_tracepoints()
        self._program = Program("opens.c")
        self._entries = entries
        self._taken: list[RawOpen] = []
        self._told_misses: Counter[str] = Counter()
        try:
            self._select(selection)
            self.table("events").open_ring_buffer(self._receive)
        except BaseException:
            self._program.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close()

    def table(self, name: str) -> Any:  # noqa: ANN401  (bcc has no types)
        """Return a map of the program."""
        return self._program.table(name)

    def set(self, **values: int) -> None:
        """Change members of the one entry of `settings`."""
        table = self.table("settings")
        entry = table[table.Key(0)]
        for name, value in values.items():
            setattr(entry, name, value)
        table[table.Key(0)] = entry

    def watch(self, pid: int) -> None:
        """Look at a process, too, and at what it starts."""
        table = self.table("watched")
        table[table.Key(pid)] = table.Leaf(1)

    def watched(self) -> list[int]:
        """Return the processes that are looked at and have not been reaped."""
        return [key.value for key in self.table("watched").keys()]  # noqa: SIM118  (bcc's)

    def any_alive(self) -> bool:
        """Tell whether a process of `watched` runs; the kernel forgets one when it is reaped."""
        return any(tracee.is_alive(pid) for pid in self.watched())

    def start(self, keeper_pid: int = 0) -> None:
        """Look from now on.

        Args:
            keeper_pid: a process that is ours, and not to be looked at.

        Raises:
            FlagshimError: the kernel refuses.
        """
        entries = int(self._entries)
        self.set(own_pid=os.getpid(), keeper_pid=keeper_pid, marks_entry=entries, follows=entries)
        program = self._program
        program.attach_tracepoint("task:task_newtask", "task_new")
        program.attach_tracepoint("sched:sched_process_free", "task_free")
        for call, function in _CALLS.items():
            try:
                if self._entries:  # before its exit: an exit without an entry means something
                    program.attach_tracepoint(f"syscalls:sys_enter_{call}", "call_enter")
                program.attach_tracepoint(f"syscalls:sys_exit_{call}", function)
            except FlagshimError:
                if call not in _OPTIONAL:
                    raise

    def stop(self) -> None:
        """Look no more; what was told of is still there to be taken."""
        self.set(all=0, by_cgroup=0)
        self.table("watched").clear()

    def take(self) -> list[RawOpen]:
        """Return what has been told since the last time, but not more than a batch."""
        self._taken = []
        self._program.bpf.ring_buffer_consume()
        return self._taken

    def returned(self) -> Counter[int]:
        """Return how many calls ended so far with which errno (0: success), told of or not."""
        counts = {int(key.value): sum(values) for key, values in self.table("returned").items()}
        return Counter({number: count for number, count in counts.items() if count})

    def new_misses(self) -> Counter[str]:
        """Return, by name (see MISSES and SKIPPED), what was not told of since the last time."""
        table = self.table("misses")
        now = Counter({name: sum(table[table.Key(at)]) for at, name in enumerate(MISSES)})
        skipped = self._program.skipped()
        for function, name in SKIPPED.items():
            now[name] += skipped[function]
        new = now - self._told_misses
        self._told_misses = now
        return new

    def _select(self, selection: Selection) -> None:
        self.set(
            all=int(selection.all),
            by_cgroup=int(selection.cgroup is not None),
            by_name=int(bool(selection.names)),
            flags=selection.flags,
        )
        for pid in selection.pids:
            self.watch(pid)
        if selection.cgroup is not None:
            self._select_cgroup(selection.cgroup)
        names = self.table("names")
        for name in selection.names:
            key = names.Key(os.fsencode(name)[: COMM_SIZE - 1])
            names[key] = names.Leaf(1)
        self.want(selection.errnos)

    def want(self, errnos: Iterable[int]) -> None:
        """Be told of calls that end so."""
        wanted = self.table("wanted")
        for number in errnos:
            wanted[wanted.Key(number)] = wanted.Leaf(1)

    def _select_cgroup(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise FlagshimError(
                f"--cgroup {path}: {error.strerror}", "name a folder, as in /sys/fs/cgroup/…"
            ) from None
        try:
            self.table("cgroups")[0] = fd
        except Exception:
            raise FlagshimError(
                f"--cgroup {path}: not a folder of the cgroup v2 hierarchy",
                "see mount -t cgroup2",
            ) from None
        finally:
            os.close(fd)

    def _receive(self, _: object, data: int, size: int) -> int:
        self._taken.append(unpack_open(memory_at(data, size)))
        return -1 if len(self._taken) >= _BATCH else 0
