"""Who does what of several processes: one each, known to all, and free when that one is dead."""

import os
import signal

import pytest

from flagshim.engines.notify.lanes import LANES
from flagshim.engines.notify.places import RECEIVER, Places, place_at
from flagshim.linux.process import die_with_parent


class Other:
    """Another process, which takes a place."""

    def __init__(self, places: Places, place: int) -> None:
        hears, says = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            die_with_parent()  # also of a test that has failed
            os.write(says, b"y" if places.try_to_take(place) else b"n")
            signal.pause()
        self.has_it = os.read(hears, 1) == b"y"
        os.close(hears)
        os.close(says)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def test_one_has_a_place_until_it_is_killed() -> None:
    places = Places()
    other = Other(places, RECEIVER)
    assert other.has_it
    assert not places.try_to_take(RECEIVER)
    assert places.holder(RECEIVER) == other.pid
    other.end()
    assert places.holder(RECEIVER) == 0
    places.take(RECEIVER)
    assert places.holder(RECEIVER) == 0, "no other"


def test_children_do_not_inherit_a_place_nor_keep_it() -> None:
    places = Places()
    places.take(place_at(2))
    child = Other(places, place_at(2))
    assert not child.has_it
    assert places.holder(place_at(2)) == 0
    places.leave(place_at(2))
    other = Other(places, place_at(2))
    assert other.has_it, "though a child of the former has the file"
    child.end()
    other.end()


@pytest.mark.parametrize("lane", [0, 1, LANES - 1])
def test_each_lane_has_a_place_of_its_own(lane: int) -> None:
    places = Places()
    other = Other(places, place_at(lane))
    taken = [places.try_to_take(place) for place in (RECEIVER, *map(place_at, range(LANES)))]
    assert [n for n, had in enumerate(taken) if not had] == [place_at(lane)]
    other.end()
