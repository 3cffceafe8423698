"""Where an engine puts what it saw."""

from typing import Protocol

from flagshim.trace.events import OpenEvent


class BlindSpots(Protocol):
    """Takes note of what nobody sees."""

    def blind_spot(self, kind: str, program: str | bytes) -> None:
        """Count something that may have opened files unseen."""


class Sink(BlindSpots, Protocol):
    """Takes events at once, and passes them on when an engine has time for it."""

    def record(self, event: OpenEvent) -> None:
        """Take one finished call."""

    def flush(self) -> bool:
        """Hand on what is held without waiting; False if something could not be handed on."""

    def flush_if_due(self) -> None:
        """Hand on what has been held for long enough."""
