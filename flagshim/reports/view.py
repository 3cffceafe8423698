"""What to show of a trace, whatever the format."""

from dataclasses import dataclass
from enum import StrEnum


class View(StrEnum):
    """One way of looking at a trace."""

    SUMMARY = "summary"
    EVENTS = "events"
    PATHS = "paths"
    PROGRAMS = "programs"


@dataclass(frozen=True)
class Selection:
    """A view, and how much of it."""

    view: View = View.SUMMARY
    since_ns: int | None = None
    """Leave out what was before, in nanoseconds since the epoch."""
    limit: int | None = None
    """The newest so many sessions or events, the most frequent so many paths or programs."""


TOP = 5
"""How many paths and programs a summary names."""
