"""Two runs of a suite held against each other, and what differs looked into again."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from .suite import Verdicts

AGAIN = 3
"""How often tests that ended differently are run again, each way."""

MISSING = "missing"


@dataclass(frozen=True)
class Difference:
    """A test that did not end the same way natively and under flagshim."""

    name: str
    native: tuple[str, ...]
    """How it ended, run after run."""
    flagshim: tuple[str, ...]
    declining: bool
    """Whether it is known to skip itself where it finds a tracer."""

    @property
    def kind(self) -> str:
        """What to think of it.

        Unsteady is what can end the same way both ways, or differs from itself natively.
        """
        if len(set(self.native)) > 1 or set(self.native) & set(self.flagshim):
            return "unsteady"
        if self.declining and set(self.flagshim) == {"skip"}:
            return "declines"
        return "DIFFERS"


@dataclass(frozen=True)
class Comparison:
    """What came of a suite, both ways."""

    suite: str
    native: Verdicts
    flagshim: Verdicts
    differences: tuple[Difference, ...]

    @property
    def real(self) -> list[Difference]:
        """Differences that are to be explained."""
        return [difference for difference in self.differences if difference.kind == "DIFFERS"]


def compare(
    suite: str,
    native: Callable[[Collection[str]], Verdicts],
    flagshim: Callable[[Collection[str]], Verdicts],
    declining: str | None,
) -> Comparison:
    """Run a suite both ways, and what differs again.

    Args:
        suite: what it is called in the table.
        native: runs the tests it is given, all if there are none.
        flagshim: does so under flagshim.
        declining: a regular expression for tests that skip themselves where they find a tracer.
    """
    first = native(()), flagshim(())
    names = sorted(
        name for name in {*first[0], *first[1]} if _of(first[0], name) != _of(first[1], name)
    )
    rounds = [first]
    if names:
        rounds += [(native(names), flagshim(names)) for _ in range(AGAIN)]
    differences = tuple(
        Difference(
            name,
            tuple(_of(each[0], name) for each in rounds),
            tuple(_of(each[1], name) for each in rounds),
            declining is not None and bool(re.match(declining, name)),
        )
        for name in names
    )
    return Comparison(suite, *first, differences)


def _of(verdicts: Verdicts, name: str) -> str:
    return verdicts.get(name, MISSING)


def table(comparisons: Sequence[Comparison]) -> str:
    """The counts, and under them what differed, as Markdown."""
    head = ["Suite", "", "tests", "passed", "failed", "skipped", "differ", "unsteady", "decline"]
    rows = []
    for found in comparisons:
        for way, verdicts in (("native", found.native), ("flagshim", found.flagshim)):
            counts = Counter(verdicts.values())
            row = [found.suite if way == "native" else "", way, len(verdicts)]
            row += [counts[verdict] for verdict in ("pass", "fail", "skip")]
            if way == "flagshim":
                kinds = Counter(difference.kind for difference in found.differences)
                row += [kinds[kind] for kind in ("DIFFERS", "unsteady", "declines")]
            rows.append(row)
    parts = [tabulate(rows, head, tablefmt="github")]
    differences = [
        [found.suite, each.name, " ".join(each.native), " ".join(each.flagshim),
         each.kind]
        for found in comparisons for each in found.differences
    ]  # fmt: skip
    if differences:
        head = ["Suite", "Test", "native, run after run", "flagshim", ""]
        parts.append(tabulate(differences, head, tablefmt="github"))
    return "\n\n".join(parts)
