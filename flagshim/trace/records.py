"""What a reader of a trace is given: sessions, events with their session, and sums."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from flagshim.trace.events import OpenEvent

Name = str | bytes | None
"""What a program called something: str where it is UTF-8, bytes where not, None if unknown."""


@dataclass(frozen=True)
class Session:
    """One command that was supervised; a row of the table `session`."""

    id: int
    started_ns: int
    """Nanoseconds since the epoch, as all times here."""
    ended_ns: int | None
    """None while it runs, or if its supervisor was killed."""
    flagshim: str
    engine: str
    host: str
    kernel: str
    machine: str
    uid: int
    cwd: str | bytes
    command: tuple[str | bytes, ...]
    rules: list[Any]
    exit_status: int | None
    """Of the command; negative: minus the signal that ended it; None if nobody knows."""
    seen: int
    """Calls looked at, including the lost ones; behind by some while the session runs."""
    lost: int
    """Calls looked at that are not among the events."""

    def missing(self, tally: "Tally") -> int:
        """Return how many calls were looked at of which the trace does not say what came.

        Args:
            tally: of all its events.
        """
        return max(self.lost, self.seen - tally.opens)


@dataclass(frozen=True)
class BlindSpot:
    """A way in which `program` may have opened files unseen, `count` times."""

    kind: str
    program: str | bytes
    count: int


@dataclass(frozen=True)
class Trouble:
    """Something that flagshim had to complain of."""

    time_ns: int
    text: str


class TracedEvent(NamedTuple):
    """An event, the session it belongs to, and the architecture its open flags are of."""

    session_id: int
    machine: str
    event: OpenEvent


class Tally(NamedTuple):
    """Events that have something in common, counted."""

    opens: int
    """All of them; `cleared` plus `kept`."""
    cleared: int
    still_refused: int
    """Of the cleared ones: those that failed with EPERM, EACCES or EINVAL even so."""
    kept: int
    failed: int
    """Calls that failed in any other way, whether cleared or kept."""
    first_ns: int
    last_ns: int


NO_EVENTS = Tally(0, 0, 0, 0, 0, 0, 0)


class Opened(NamedTuple):
    """The opens of one file by one program under one rule, counted."""

    rule: str | None
    """None: no rule matched."""
    program: str | bytes
    path: Name
    tally: Tally
    denied: int
    """Of `tally.failed`: those refused with EPERM or EACCES though no flag was cleared."""
    spoiled: int
    """Of `tally.failed`: those that failed after a flag was cleared."""

    @property
    def rewritten(self) -> int:
        """Opens made without a flag, that did not fail."""
        return self.tally.cleared - self.tally.still_refused - self.spoiled

    @property
    def refused(self) -> int:
        """Opens that the kernel refused in the end, whether a flag was cleared or not."""
        return self.tally.still_refused + self.denied


class Span(NamedTuple):
    """Events that were seen in one span of time, counted by what came of them."""

    number: int
    """Of the span, from 0."""
    rewritten: int
    refused: int
    """In the end, whether a flag was cleared or not."""
    failed: int
    """In another way, whether a flag was cleared or not."""
    kept: int
    """Allowed as asked."""


class NamedTally(NamedTuple):
    """The events of one file or of one program, counted."""

    name: Name
    tally: Tally
