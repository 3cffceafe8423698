"""Memory that supervisors of the notify engine share with their guard, and that outlives them.

Each supervisor has a lane: the call it was last given, as the kernel itself put it there, and a
ring of what it has to tell. SIGKILL may come between any two instructions. So there is an
order: what will be told of a call is prepared, the call is answered, the telling is published,
the call is forgotten. Whoever takes the lane over sees from what is there, and from whether the
call still waits, which of these were done.
"""

import marshal
import mmap
import struct
import time
from collections.abc import Iterator
from enum import IntEnum

from flagshim.engines.notify.listener import NOTIFICATION_SIZE
from flagshim.linux.libc import address_of

LANES = 31
"""How many supervisors there can be at a time, all but one waiting for a filesystem."""

_HEADER_SIZE = 256
_RING_SIZE = 1 << 20
_LANE_SIZE = _HEADER_SIZE + _RING_SIZE
_SHARED_SIZE = 4096
_CALL_AT = 128
_CALL_ID = _CALL_AT // 8
_ALIGNMENT = 8
_RECORD = struct.Struct("=IiQ")
"""Before each record: its size with this and padding, a descriptor, and how many events there are
up to and with this. That many were taken once this is: a guard may be killed between a record and
a counter, and who comes after it would count twice."""
_size, _descriptor, _events = (struct.Struct(form) for form in ("=I", "=i", "=8xQ"))
_TO_THE_START = 0xFFFF_FFFF
"""Instead of a size and the rest: the next record is at the start of the ring."""
_NO_DESCRIPTOR = -1
_PATIENCE_SECONDS = 1.0
"""How long to wait for room in the ring before records are lost."""
_MOMENT_SECONDS = 1e-3

(
    _PID, _STATE, _HEAD, _TAIL, _LOST, _ANSWERED, _PREPARED_AT, _PREPARED_END, _STRIKES,
    _STRUCK_CALL, _MARK, _GIVEN, _EVENTS, _TAKEN, _LOST_TOLD,
) = range(15)  # fmt: skip
"""Words of 64 bits at the beginning of a lane."""
_tick = struct.Struct("=Q")
(
    _SOMEONE_CONFINED, _NOT_ALL_NO_NEW_PRIVS, _GUARD_LOOKS_SOON, _GROUPS_CHANGED, _GUARD_LEAVES,
    _POLLER_RESTS,
) = range(6)  # fmt: skip
"""Bytes at the start of the memory, each 0 or 1."""
_CONFINED_SINCE = 8
_QUICK_CALLS = 16
_REIGN = 24
"""Where these are in the memory that all share."""
_NO_CALL = bytes(NOTIFICATION_SIZE)


class State(IntEnum):
    """What the supervisor of a lane does."""

    NOBODY = 0
    """There is none."""
    IN_RESERVE = 1
    """It waits for its turn to receive calls."""
    RECEIVING = 2
    AWAY = 3
    """It is busy with a call that may have to wait, and receives no others."""


class Lanes:
    """All lanes, and what is known of all programs together."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SHARED_SIZE + LANES * _LANE_SIZE)
        self._lanes = [Lane(self._memory, n) for n in range(LANES)]
        self._quick_calls = self._word(_QUICK_CALLS)
        self._reign = self._word(_REIGN)

    def _word(self, at: int) -> memoryview:
        return memoryview(self._memory)[at : at + 8].cast("Q")

    def __iter__(self) -> Iterator["Lane"]:
        return iter(self._lanes)

    def spare(self) -> bool:
        """Tell whether somebody is there to receive calls, or could be, while another is away."""
        return any(lane.state in (State.IN_RESERVE, State.NOBODY) for lane in self._lanes)

    def receiving(self) -> list["Lane"]:
        """Return the lanes of those who receive calls, or wait for their turn to."""
        return [lane for lane in self._lanes if lane.state in (State.RECEIVING, State.IN_RESERVE)]

    @property
    def someone_confined(self) -> bool:
        """Whether any thread has ever confined itself with landlock(7)."""
        return self._memory[_SOMEONE_CONFINED] != 0

    def confine_someone(self, now: int, no_new_privs: bool) -> None:
        """Note that one is about to.

        Args:
            now: in clock ticks since the machine was started.
            no_new_privs: whether that thread has it set.
        """
        if not no_new_privs:
            self._memory[_NOT_ALL_NO_NEW_PRIVS] = 1
        if not self._memory[_SOMEONE_CONFINED]:
            _tick.pack_into(self._memory, _CONFINED_SINCE, now)
        self._memory[_SOMEONE_CONFINED] = 1

    def confine_anybody(self) -> None:
        """Note that one is about to, and that nobody knows who."""
        self._memory[_NOT_ALL_NO_NEW_PRIVS] = 1
        _tick.pack_into(self._memory, _CONFINED_SINCE, 0)
        self._memory[_SOMEONE_CONFINED] = 1

    @property
    def confined_since(self) -> int:
        """When the first did, in clock ticks."""
        return int(_tick.unpack_from(self._memory, _CONFINED_SINCE)[0])

    @property
    def confined_all_with_no_new_privs(self) -> bool:
        """Whether all that did had no_new_privs set, and so have all that come of them."""
        return self._memory[_NOT_ALL_NO_NEW_PRIVS] == 0

    @property
    def someone_changed_groups(self) -> bool:
        """Whether any thread may have other supplementary groups than the command began with."""
        return self._memory[_GROUPS_CHANGED] != 0

    def change_someones_groups(self) -> None:
        """Note that one has."""
        self._memory[_GROUPS_CHANGED] = 1

    @property
    def guard_looks_soon(self) -> bool:
        """Whether the guard is going to read what is told, without being woken."""
        return self._memory[_GUARD_LOOKS_SOON] != 0

    @guard_looks_soon.setter
    def guard_looks_soon(self, soon: bool) -> None:
        self._memory[_GUARD_LOOKS_SOON] = soon

    @property
    def guard_leaves(self) -> bool:
        """Whether the guard was asked to end, so that its end is no accident."""
        return self._memory[_GUARD_LEAVES] != 0

    @guard_leaves.setter
    def guard_leaves(self, leaves: bool) -> None:
        self._memory[_GUARD_LEAVES] = leaves

    @property
    def quick_calls(self) -> int:
        """How many calls came soon after the one before; no exact count."""
        return self._quick_calls[0]

    def count_quick_call(self) -> bool:
        """Count one; tell whether the idle poller has to be woken to see it."""
        self._quick_calls[0] += 1
        return self._memory[_POLLER_RESTS] != 0

    @property
    def taken(self) -> int:
        """How many events guards have taken from all lanes, and how many found no room."""
        return sum(lane.taken for lane in self._lanes)

    @property
    def reign(self) -> int:
        """How many guards there were before this one."""
        return self._reign[0]

    def begin_reign(self) -> None:
        """Take note that we are the next guard."""
        self._reign[0] += 1

    @property
    def poller_rests(self) -> bool:
        """Whether the idle poller has to be woken to see that there is another quick call."""
        return self._memory[_POLLER_RESTS] != 0

    @poller_rests.setter
    def poller_rests(self, rests: bool) -> None:
        self._memory[_POLLER_RESTS] = rests


class Lane:
    """What one supervisor at a time writes, and the guard reads."""

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        self.number = number
        self._memory = memory
        self._start = _SHARED_SIZE + number * _LANE_SIZE
        self._ring = self._start + _HEADER_SIZE
        self._words = memoryview(memory)[self._start : self._ring].cast("Q")
        self._tail_waited_for = -1
        self._give_up_at = 0.0
        call_at = self._start + _CALL_AT
        self.call_address = address_of(memory) + call_at
        self.call = memoryview(memory)[call_at : call_at + NOTIFICATION_SIZE]
        """What the kernel has put there: struct seccomp_notif."""

    # --- who ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of its supervisor; 0 for none."""
        return self._words[_PID]

    @pid.setter
    def pid(self, pid: int) -> None:
        self._words[_PID] = pid

    @property
    def state(self) -> State:
        """What that does."""
        return State(self._words[_STATE]) if self.pid else State.NOBODY

    @state.setter
    def state(self, state: State) -> None:
        self._words[_STATE] = state

    def vacate(self) -> None:
        """Take note that its supervisor is gone."""
        self._words[_PID] = 0

    @property
    def answered(self) -> int:
        """How many calls were answered here."""
        return self._words[_ANSWERED]

    # --- the call -----------------------------------------------------------------------

    @property
    def call_id(self) -> int:
        """Of the call that was received here and not forgotten yet; 0 for none."""
        return self._words[_CALL_ID]

    def strike(self) -> int:
        """Count a supervisor that died with the call; return how many did."""
        strikes = self._words[_STRIKES] + 1 if self._words[_STRUCK_CALL] == self.call_id else 1
        self._words[_STRIKES] = strikes
        self._words[_STRUCK_CALL] = self.call_id
        return strikes

    def pardon(self) -> None:
        """Do not count those who have died so far: it was not because of the call."""
        self._words[_STRUCK_CALL] = 0

    # --- a descriptor on its way to the thread ------------------------------------------

    @property
    def mark(self) -> int:
        """The offset that tells the file which is being given to the thread; 0 for none."""
        return self._words[_MARK]

    @property
    def given(self) -> int | None:
        """The thread's descriptor, once it has it."""
        return self._words[_GIVEN] - 1 if self._words[_GIVEN] else None

    @given.setter
    def given(self, descriptor: int) -> None:
        self._words[_GIVEN] = descriptor + 1

    def forget_call(self) -> None:
        """Make room for another call: it was answered, or waits no more."""
        words = self._words
        words[_ANSWERED] += 1
        self.call[:] = _NO_CALL
        words[_GIVEN] = words[_MARK] = words[_PREPARED_END] = 0

    # --- what is told, by the supervisor ------------------------------------------------

    def prepare(self, record: tuple[object, ...], is_event: bool = True, mark: int = 0) -> bool:
        """Write down what is to be told of the call once it is answered.

        Args:
            record: that.
            is_event: whether it counts as an event.
            mark: see there.

        Returns:
            Whether there was room; else it is counted as lost.
        """
        words = self._words
        words[_MARK] = mark
        payload = marshal.dumps(record)  # type: ignore[arg-type]
        size = -(-(_RECORD.size + len(payload)) // _ALIGNMENT) * _ALIGNMENT
        head = words[_HEAD]
        left = _RING_SIZE - head % _RING_SIZE
        start = head if size <= left else head + left
        if start + size - words[_TAIL] > _RING_SIZE and not self._has_room(start + size):
            words[_LOST] += 1
            return False
        if start != head:
            _size.pack_into(self._memory, self._ring + head % _RING_SIZE, _TO_THE_START)
        at = self._ring + start % _RING_SIZE
        _RECORD.pack_into(self._memory, at, size, _NO_DESCRIPTOR, words[_EVENTS] + is_event)
        at += _RECORD.size
        self._memory[at : at + len(payload)] = payload
        words[_PREPARED_AT] = start
        words[_PREPARED_END] = start + size
        return True

    def _has_room(self, end: int) -> bool:
        """Wait for a guard that gets too little CPU; not again for one that does not move."""
        while end - self._words[_TAIL] > _RING_SIZE:
            if self._tail_waited_for != self._words[_TAIL]:
                self._tail_waited_for = self._words[_TAIL]
                self._give_up_at = time.monotonic() + _PATIENCE_SECONDS
            elif time.monotonic() > self._give_up_at:
                return False
            time.sleep(_MOMENT_SECONDS)
        return True

    @property
    def is_prepared(self) -> bool:
        """Whether something is to be told of the call."""
        return self._words[_PREPARED_END] != 0

    def is_published(self) -> bool:
        """Tell whether it was told."""
        return self._words[_HEAD] >= self._words[_PREPARED_END]

    def publish(self, descriptor: int | None = None) -> bool:
        """Tell what was prepared.

        Args:
            descriptor: what the call returned, unless it failed or nobody knows.

        Returns:
            Whether the guard may have to be woken to hear it.
        """
        words = self._words
        at = self._ring + words[_PREPARED_AT] % _RING_SIZE
        if descriptor is not None:
            _descriptor.pack_into(self._memory, at + 4, descriptor)
        (words[_EVENTS],) = _events.unpack_from(self._memory, at)
        words[_HEAD] = words[_PREPARED_END]
        return not self._memory[_GUARD_LOOKS_SOON]

    def withdraw(self) -> None:
        """Do not tell what was prepared."""
        self._words[_PREPARED_END] = 0

    # --- what is told, to the guard -----------------------------------------------------

    def told(self) -> Iterator[tuple[tuple[object, ...], int | None]]:
        """Return what was told, with the descriptor, each once."""
        tail, head = self._words[_TAIL], self._words[_HEAD]
        while tail < head:
            at = self._ring + tail % _RING_SIZE
            (size,) = _size.unpack_from(self._memory, at)
            if size == _TO_THE_START:
                tail += _RING_SIZE - tail % _RING_SIZE
                continue
            _, descriptor, events = _RECORD.unpack_from(self._memory, at)
            record = marshal.loads(self._memory[at + _RECORD.size : at + size])
            yield record, None if descriptor == _NO_DESCRIPTOR else descriptor
            tail += size
            self._words[_TAKEN] = events
            self._words[_TAIL] = tail

    def take_lost(self) -> int:
        """Return how many records there was no room for, since the last time."""
        lost = self._words[_LOST] - self._words[_LOST_TOLD]
        if lost:
            self._words[_LOST_TOLD] += lost
        return lost

    @property
    def taken(self) -> int:
        """How many events were taken from here, and how many records found no room."""
        return self._words[_TAKEN] + self._words[_LOST]
