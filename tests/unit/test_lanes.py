"""What supervisors of the notify engine leave to their guard, and to whoever comes after them."""

import os
import struct

from flagshim.engines.notify.lanes import Lane, Lanes, State

CALL = struct.Struct("=Q72x")


def lane() -> Lane:
    return next(iter(Lanes()))


def received(lane: Lane, number: int) -> None:
    """Put a call there, as the kernel does."""
    import ctypes

    ctypes.memmove(lane.call_address, CALL.pack(number), CALL.size)


def told(lane: Lane) -> list[tuple[tuple[object, ...], int | None]]:
    return list(lane.told())


def test_what_is_prepared_is_told_once_it_is_published() -> None:
    one = lane()
    assert one.prepare(("event", 7, b"x"))
    assert told(one) == []
    one.publish(3)
    assert told(one) == [(("event", 7, b"x"), 3)]
    assert told(one) == []


def test_what_is_prepared_anew_replaces_what_was_not_told() -> None:
    one = lane()
    one.prepare(("event", "first"))
    one.prepare(("event", "second"))
    one.publish()
    assert told(one) == [(("event", "second"), None)]


def test_the_ring_goes_round() -> None:
    """A million bytes, in records of all sizes: none is lost, none is torn."""
    one = lane()
    for n in range(10_007):
        record = ("event", n, b"x" * (n % 251))
        assert one.prepare(record)
        one.publish(n)
        if n % 1009 == 0 or n == 10_006:
            last = told(one)[-1]
            assert last == (record, n)


def test_a_guard_killed_before_a_record_is_behind_it_counts_it_once() -> None:
    lanes = Lanes()
    one, other, *_ = lanes
    for each in (one, one, one, other):
        each.prepare(("event", 7))
        each.publish()
    one.prepare(("trouble", "no event"), is_event=False)
    one.publish()
    assert lanes.taken == 0
    killed = one.told()
    for _ in range(2):
        next(killed)
    assert lanes.taken == 1, "the second is with the guard"
    assert len(told(one)) == 3
    assert lanes.taken == 3
    assert len(told(other)) == 1
    assert lanes.taken == 4


def test_what_finds_no_room_is_counted() -> None:
    one = lane()
    record = ("event", b"x" * 1009)
    stored = 0
    while one.prepare(record):
        one.publish()
        stored += 1
    assert not one.prepare(record), "and a guard that does not move is not waited for again"
    assert one.take_lost() == 2
    assert one.take_lost() == 0
    assert len(told(one)) == stored
    assert one.taken == stored + 2
    assert one.prepare(record)


def test_a_call_with_a_large_id_is_known_to_the_next_supervisor() -> None:
    """IDs begin anywhere in 64 bits."""
    one = lane()
    pid = os.fork()
    if pid == 0:
        received(one, 2**64 - 59)
        one.prepare(("event", 7), mark=7919)
        one.given = 0
        os._exit(0)
    os.waitpid(pid, 0)
    assert one.call_id == 2**64 - 59
    assert (one.is_prepared, one.is_published()) == (True, False)
    assert (one.mark, one.given) == (7919, 0)
    assert [one.strike() for _ in range(3)] == [1, 2, 3]
    one.forget_call()
    assert (one.call_id, one.is_prepared, one.mark, one.given) == (0, False, 0, None)
    assert one.call == bytes(CALL.size)
    received(one, 7)
    assert one.strike() == 1, "another call"


def test_deaths_that_were_not_because_of_the_call_do_not_count() -> None:
    one = lane()
    received(one, 7)
    assert [one.strike() for _ in range(2)] == [1, 2]
    one.pardon()
    assert one.strike() == 1


def test_somebody_receives_calls_or_is_about_to() -> None:
    lanes = Lanes()
    assert not lanes.receiving()
    one = next(iter(lanes))
    for state in State:
        one.pid, one.state = 7, state
        assert (lanes.receiving() == [one]) == (state in (State.IN_RESERVE, State.RECEIVING))
        one.vacate()
        assert not lanes.receiving(), state


def test_somebody_is_to_spare_until_all_are_away() -> None:
    lanes = Lanes()
    for each in lanes:
        assert lanes.spare()
        each.pid, each.state = 7, State.AWAY
    assert not lanes.spare()
    next(iter(lanes)).state = State.IN_RESERVE
    assert lanes.spare()
