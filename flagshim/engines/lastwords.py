"""The wait status of a process that is not ours to wait for, from the ends of its threads."""

from flagshim import tracee

_MANY = 1009


class LastWords:
    """Listens to the threads of one process until the last of them has ended."""

    def __init__(self) -> None:
        self._leader: int | None = None
        """The status that the leader ended with; None while it runs."""
        self._ended: set[int] = set()
        """Threads, of whatever process, that /proc may still show."""
        self._others: set[int] = set()
        """Threads of the process that ran when we looked last."""

    def began(self, tid: int) -> None:
        """Take note of a thread: its ID may have been that of one that ended."""
        self._ended.discard(tid)

    def of_process(self, pid: int, tid: int, status: int) -> int | None:
        """Take note of the end of a thread of whatever process.

        Args:
            pid: the process.
            tid: the thread.
            status: what it ended with; in exit_group(2) all threads end with the same.

        Returns:
            The wait status of the process if that was its last thread, else None. It is the
            leader's, but for a leader that ended before the process did (pthread_exit(3)).
        """
        self._ended.add(tid)
        if len(self._ended) > _MANY:
            self._ended &= tracee.threads_of(pid)
        if tid == pid:
            self._leader = status
        elif self._leader is None or tid not in self._others:
            return None
        self._others.discard(tid)
        if not self._others:
            self._others = tracee.threads_of(pid) - self._ended
        return None if self._others else status or self._leader
