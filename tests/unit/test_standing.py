"""What a supervisor of the notify engine keeps of threads, without any tracing."""

import os
import resource
import threading
from collections.abc import Iterator

import pytest

from flagshim.engines.notify.lanes import Lanes
from flagshim.engines.notify.standing import Standings

THREADS = 23


@pytest.fixture
def tids() -> Iterator[list[int]]:
    """IDs of threads that last as long as the test."""
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    yield [thread.native_id or 0 for thread in threads]
    over.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def standings() -> Iterator[Standings]:
    standings = Standings(Lanes())
    yield standings
    standings.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_pidfds_are_kept_in_a_part_of_the_descriptors(
    tids: list[int], standings: Standings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    for limit, kept in ((1 << 20, THREADS), (29, 7), (3, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        for tid in tids:
            os.fstat(standings.pidfd(tid))
        assert descriptors() == before + kept
        assert standings.pidfd(tids[-1]) == standings.pidfd(tids[-1]), "it is kept"
        standings.close()
        assert descriptors() == before


def test_pidfds_make_room_for_another(tids: list[int], standings: Standings) -> None:
    """Where other descriptors have taken so many that there is none left."""
    kept = tids[:2]
    for tid in kept:
        standings.pidfd(tid)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        standings.pidfd(tids[2])
        os.close(os.dup(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
