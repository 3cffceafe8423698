"""What an engine is to do with the programs it supervises."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from flagshim.linux.ptrace import SURVIVOR_OPTIONS, TRACE_OPTIONS
from flagshim.rules import NONE_EXEMPT, Exemption, Rule


class Fate(StrEnum):
    """What becomes of a program whose supervisor dies."""

    KILL = "kill"
    """The kernel kills it, PTRACE_O_EXITKILL of ptrace(2)."""
    CONTINUE = "continue"
    """It runs on, and another supervisor seizes it as soon as can be."""


@dataclass(frozen=True)
class Policy:
    """Rules, and whom they are not for."""

    rules: Sequence[Rule]
    """In order; the first that is for a call and flag decides."""
    exemption: Exemption = NONE_EXEMPT
    """Programs that are left alone."""
    fate: Fate = Fate.KILL

    @property
    def leaves(self) -> bool:
        """Whether a program may have to do with our filter and without us."""
        return bool(self.exemption.programs) or self.fate is Fate.CONTINUE

    @property
    def options(self) -> int:
        """The PTRACE_O_* to seize with."""
        return TRACE_OPTIONS if self.fate is Fate.KILL else SURVIVOR_OPTIONS
