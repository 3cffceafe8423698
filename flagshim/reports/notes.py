"""What a trace has to say of each session beside the row that describes it."""

from collections.abc import Sequence

from flagshim.trace.reader import TraceReader
from flagshim.trace.records import NO_EVENTS, BlindSpot, Session, Tally, Trouble


class SessionNotes:
    """Sums, blind spots and troubles of all sessions, read once."""

    def __init__(self, reader: TraceReader) -> None:
        self._tallies = reader.by_session()
        self._dropped = reader.dropped()
        self._blind_spots = reader.blind_spots()
        self._troubles = reader.troubles()

    def tally(self, session: Session) -> Tally:
        """Return the sums over its events, dropped ones included."""
        return self._tallies.get(session.id, NO_EVENTS)

    def dropped(self, session: Session) -> int:
        """Return how many of its events are there only as counts."""
        return self._dropped.get(session.id, 0)

    def missing(self, session: Session) -> int:
        """Return how many calls were looked at of which the trace does not say what came."""
        return session.missing(self.tally(session))

    def blind_spots(self, session: Session) -> Sequence[BlindSpot]:
        """Return what may have opened files unseen."""
        return self._blind_spots.get(session.id, ())

    def troubles(self, session: Session) -> Sequence[Trouble]:
        """Return what flagshim had to complain of."""
        return self._troubles.get(session.id, ())
