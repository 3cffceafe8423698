"""Conditions to fail on: "refusals > 7", "lost events"."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Metric(StrEnum):
    """What can be counted in a trace; docs/gates.md describes each."""

    REWRITES = "rewrites"
    """Opens made without a flag, whatever came of them."""
    REFUSALS = "refusals"
    """Opens that the kernel refused in the end, whether a flag was cleared or not."""
    FAILED_AFTER_REWRITE = "failed after rewrite"
    """Opens that failed, with any error, although a flag was cleared."""
    UNKNOWN_PATH = "unknown path"
    """Opens that were rewritten or refused and whose path is not known."""
    LOST_EVENTS = "lost events"
    """Opens that are not in the trace."""
    BLIND_SPOTS = "blind spots"
    """Ways past flagshim that were taken, such as an io_uring."""


_OPERATORS: dict[str, Callable[[int, int], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_EXPRESSION = re.compile(r"([a-z _-]*[a-z])\s*(?:([<>]=?|[=!]=)\s*([0-9]{1,18}))?", re.ASCII)


@dataclass(frozen=True)
class Condition:
    """A count, and what it must not be."""

    metric: Metric
    operator: str = ">"
    number: int = 0

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.number}"

    def met(self, count: int) -> bool:
        """Tell whether a count is such that the gate fails."""
        return _OPERATORS[self.operator](count, self.number)

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Return the condition that an expression means; without a comparison, more than none.

        "-" and "_" are as good as the space between words, and a plural as its singular.

        Raises:
            ValueError: saying what would be accepted.
        """
        match = _EXPRESSION.fullmatch(text.strip().lower())
        metric = _METRICS.get(_key(match[1])) if match else None
        if match is None or metric is None:
            raise ValueError(
                f"{text!r} is not one of {', '.join(Metric)}, alone or with a comparison, "
                "as in 'refusals > 7'"
            )
        return cls(metric, match[2] or ">", int(match[3] or 0))


def _key(words: str) -> str:
    return " ".join(word.removesuffix("s") for word in re.split("[ _-]+", words) if word)


_METRICS = {_key(metric): metric for metric in Metric} | {"lost": Metric.LOST_EVENTS}
