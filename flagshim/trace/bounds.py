"""How much of a trace is kept, where it is not to grow for as long as a program runs."""

import re
from typing import NamedTuple

from flagshim.durations import seconds_of
from flagshim.errors import FlagshimError


class Bound(NamedTuple):
    """What --keep asks for. Events beyond it become counts by path."""

    events: int | None = None
    """The newest so many of the whole trace; None for all."""
    seconds: int | None = None
    """Those of the last so many seconds; None for all."""


EVERYTHING = Bound()


def parse_bound(text: str) -> Bound:
    """Return what the argument of --keep means.

    Raises:
        FlagshimError: it is neither a number nor a length of time.
    """
    if re.fullmatch("[0-9]{1,12}", text) and int(text):
        return Bound(events=int(text))
    if seconds := seconds_of(text):
        return Bound(seconds=seconds)
    raise FlagshimError(
        f"--keep {text}: neither a number of opens nor a length of time",
        "as in --keep 1000000 or --keep 30d",
    )
