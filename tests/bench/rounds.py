"""Contestants that take turns, and what the figures of many turns come to.

A machine's clock and its other work change from one minute to the next. So everybody runs
once in each round, in an order that is rotated, and contestants are compared within rounds:
a ratio is the median of the rounds' ratios, not the ratio of two medians.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from tests.bench.contestants import Contestant
from tests.bench.quiet import Quiet

Measure = Callable[[], float]


@dataclass(frozen=True)
class Series:
    """The figures of each contestant, one a round."""

    samples: dict[Contestant, list[float]]

    @property
    def rounds(self) -> int:
        """How many turns everybody had."""
        return min(map(len, self.samples.values()))

    def median(self, of: Contestant) -> float | None:
        """Return the median of a contestant; None if it did not take part."""
        return median(self.samples[of]) if of in self.samples else None

    def ratio(self, of: Contestant, to: Contestant) -> float:
        """Return the median of the rounds' ratios."""
        return median(a / b for a, b in self._pairs(of, to))

    def spread(self, of: Contestant, to: Contestant) -> tuple[float, float]:
        """Return the smallest and the largest of the rounds' ratios."""
        ratios = [a / b for a, b in self._pairs(of, to)]
        return min(ratios), max(ratios)

    def difference(self, of: Contestant, to: Contestant) -> float:
        """Return the median of the rounds' differences."""
        return median(a - b for a, b in self._pairs(of, to))

    def _pairs(self, of: Contestant, to: Contestant) -> list[tuple[float, float]]:
        return list(zip(self.samples[of], self.samples[to], strict=True))


def take_turns(
    contestants: Mapping[Contestant, Measure], rounds: int, quiet: Quiet | None
) -> Series:
    """Have each contestant measured once a round, another of them first each time.

    Args:
        quiet: whom to let take the figures; None for one too short to tell.
    """
    samples: dict[Contestant, list[float]] = {contestant: [] for contestant in contestants}
    names = list(contestants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            measure = contestants[name]
            samples[name].append(quiet.figure(measure) if quiet else measure())
    return Series(samples)
