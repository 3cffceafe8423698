"""What a process ended with, from the ends of its threads in whatever order."""

import itertools

import pytest

from flagshim import tracee
from flagshim.engines.lastwords import LastWords

PID, THREADS = 100, (100, 101, 102)


@pytest.mark.parametrize("order", list(itertools.permutations(THREADS)))
def test_exit_group(order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc goes on showing a thread for a moment after its end."""
    monkeypatch.setattr(tracee, "threads_of", lambda _: set(THREADS))
    words = LastWords()
    found = [words.of_process(PID, tid, 0x700) for tid in order]
    assert found == [None, None, 0x700]


def test_leader_that_ends_before_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    running = {PID, 101}
    monkeypatch.setattr(tracee, "threads_of", lambda _: set(running))
    words = LastWords()
    assert words.of_process(PID, 77, 0x100) is None, "another process's"
    assert words.of_process(PID, PID, 0) is None
    running.add(102)
    assert words.of_process(PID, 101, 0) is None, "there is a new one"
    assert words.of_process(PID, 102, 0x700) == 0x700


def test_leader_that_had_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracee, "threads_of", lambda _: {PID, 101})
    words = LastWords()
    assert words.of_process(PID, PID, 0x300) is None
    assert words.of_process(PID, 101, 0) == 0x300


def test_id_that_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracee, "threads_of", lambda _: {PID, 101})
    words = LastWords()
    assert words.of_process(PID, 101, 0) is None
    words.began(101)
    assert words.of_process(PID, PID, 0) is None
    assert words.of_process(PID, 101, 0x700) == 0x700


def test_what_ended_long_ago_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracee, "threads_of", lambda _: {PID})
    words = LastWords()
    for tid in range(1000, 100_003):
        assert words.of_process(PID, tid, 0) is None
    assert len(words._ended) < 2003
    assert words.of_process(PID, PID, 9) == 9
