"""What a probe says of this machine, and what makes a function a probe."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from flagshim.probes.trial import SECONDS, TrialError, attempt


class Status(StrEnum):
    """How much of a thing there is here."""

    WORKS = "works"
    LIMITED = "limited"
    """flagshim works without it, not as well or not for everything."""
    NO = "no"


class Answer(NamedTuple):
    """What a probe found out; `help` is a clause without a full stop, empty where none is due."""

    status: Status
    detail: str
    help: str = ""


def works(detail: str) -> Answer:
    """Nothing is amiss."""
    return Answer(Status.WORKS, detail)


def limited(detail: str, help_: str) -> Answer:
    """It goes without."""
    return Answer(Status.LIMITED, detail, help_)


def no(detail: str, help_: str) -> Answer:
    """It is not there."""
    return Answer(Status.NO, detail, help_)


@dataclass(frozen=True)
class Finding:
    """What one probe found out."""

    probe: str
    status: Status
    detail: str
    help: str = ""


@dataclass(frozen=True)
class Probe:
    """A question to this machine. Calling it asks, in a child that may crash or hang."""

    name: str
    look: Callable[[], Answer]
    needed: bool
    """Whether `flagshim run` cannot work where the answer is "no"."""
    seconds: float = SECONDS
    """How long it may take."""

    def __call__(self) -> Finding:
        """Ask; whatever happens is a finding."""
        try:
            status, detail, help_ = attempt(lambda: list(self.look()), self.seconds)
        except TrialError as error:
            worst = Status.NO if self.needed else Status.LIMITED
            return Finding(self.name, worst, f"could not be found out: {error}", error.hint)
        return Finding(self.name, Status(status), detail, help_)


def probe(
    name: str, *, needed: bool = False, seconds: float = SECONDS
) -> Callable[[Callable[[], Answer]], Probe]:
    """Make a probe of a function, which is to find out by trying."""
    return lambda look: Probe(name, look, needed, seconds)
