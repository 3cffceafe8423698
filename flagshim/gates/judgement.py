"""Conditions and a baseline put to a trace: does the gate fail, and what is different?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flagshim.gates.baseline import Baseline, Effect, Entry, Finding, findings
from flagshim.gates.condition import Condition, Metric
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import NO_EVENTS, Opened

SHOWN = 1009
"""Findings and entries of a difference that are kept to be shown; all are counted."""

OF_A_BASELINE = (
    Condition(Metric.REWRITES),
    Condition(Metric.REFUSALS),
    Condition(Metric.FAILED_AFTER_REWRITE),
)
"""What a baseline fails on unless told otherwise: whatever it does not expect."""
_OF_OPENS = frozenset(Metric) - {Metric.LOST_EVENTS, Metric.BLIND_SPOTS}
"""What says itself how many opens beyond a baseline there may be."""


class _Unseen(NamedTuple):
    lost: int
    blind_spots: int
    unended: int


@dataclass(frozen=True)
class Judged:
    """A condition, and what was counted for it."""

    condition: Condition
    count: int

    @property
    def failed(self) -> bool:
        """Whether the gate fails for it."""
        return self.condition.met(self.count)


@dataclass(frozen=True)
class Difference:
    """What a trace has that a baseline has not, and the other way round."""

    baseline: str
    """Its name."""
    new: tuple[Finding, ...]
    """The first so many, those refused most often before others."""
    new_count: int
    gone: tuple[Entry, ...]
    """Entries that were not needed; the first so many."""
    gone_count: int


@dataclass(frozen=True)
class Judgement:
    """What became of a gate."""

    judged: tuple[Judged, ...]
    difference: Difference | None
    """None without a baseline."""
    lost: int
    """Opens that it knows nothing of, because they are not in the trace."""
    unended: int = 0
    """Sessions that have not ended, or not as they should: nobody knows what came later."""
    baseline: Baseline | None = None

    @property
    def failed(self) -> bool:
        """Whether the gate fails."""
        return any(judged.failed for judged in self.judged)


@dataclass(frozen=True)
class Gate:
    """What to fail on.

    Attributes:
        conditions: any of which fails the gate; with a baseline those of `OF_A_BASELINE`, too,
            unless one of them says itself how many opens there may be.
        baseline: what is expected and therefore not counted.
    """

    conditions: tuple[Condition, ...] = ()
    baseline: Baseline | None = None

    def judge(
        self,
        reader: TraceReader,
        since_ns: int | None = None,
        session: int | None = None,
        lost: int = 0,
    ) -> Judgement:
        """Put the gate to a trace.

        Args:
            since_ns: leave out what was seen before, in nanoseconds since the epoch.
            session: only this one; None: all.
            lost: opens known to be missing, for a trace that could not take even that.

        Raises:
            FlagshimError: the trace is damaged.
        """
        counts: Counter[Metric] = Counter()
        needed: set[int] = set()
        new: list[Finding] = []
        new_count = 0
        for opened in reader.opened(since_ns, session):
            for finding in findings(opened):
                at = self.baseline.find(finding) if self.baseline else None
                if at is not None:
                    needed.add(at)
                    continue
                _count(counts, finding, opened)
                new_count += 1
                if len(new) < SHOWN:
                    new.append(finding)
        unseen = _unseen(reader, since_ns, session)
        lost = max(lost, unseen.lost)
        # Of a session without an end nobody knows how many; at least it is not nothing.
        counts[Metric.LOST_EVENTS] = lost + unseen.unended
        counts[Metric.BLIND_SPOTS] = unseen.blind_spots
        judged = tuple(
            Judged(condition, counts[condition.metric]) for condition in self._all_conditions()
        )
        difference = _difference(self.baseline, new, new_count, needed) if self.baseline else None
        return Judgement(judged, difference, lost, unseen.unended, self.baseline)

    def _all_conditions(self) -> tuple[Condition, ...]:
        if self.baseline is None or any(c.metric in _OF_OPENS for c in self.conditions):
            return self.conditions
        return (*self.conditions, *OF_A_BASELINE)


def _count(counts: Counter[Metric], finding: Finding, opened: Opened) -> None:
    count = finding.opens
    match finding.effect:
        case Effect.REWRITTEN:
            counts[Metric.REWRITES] += count
        case Effect.FAILED:
            counts[Metric.REWRITES] += count
            counts[Metric.FAILED_AFTER_REWRITE] += count
        case Effect.REFUSED:
            counts[Metric.REFUSALS] += count
            counts[Metric.REWRITES] += opened.tally.still_refused
            counts[Metric.FAILED_AFTER_REWRITE] += opened.tally.still_refused
    if finding.path is None:
        counts[Metric.UNKNOWN_PATH] += count


def _unseen(reader: TraceReader, since_ns: int | None, session: int | None) -> _Unseen:
    """Count opens that are not in the trace, ways past flagshim, sessions without an end."""
    tallies, spots = reader.by_session(), reader.blind_spots()
    lost = blind_spots = unended = 0
    for row in reader.sessions(since_ns):
        if session in (None, row.id):
            lost += row.missing(tallies.get(row.id, NO_EVENTS))
            blind_spots += sum(spot.count for spot in spots.get(row.id, []))
            unended += row.ended_ns is None
    return _Unseen(lost, blind_spots, unended)


def _difference(
    baseline: Baseline, new: Sequence[Finding], new_count: int, needed: set[int]
) -> Difference:
    gone = [at for at in range(len(baseline.entries)) if at not in needed]
    shown = tuple(baseline.entries[at] for at in gone[:SHOWN])
    return Difference(baseline.name, tuple(new), new_count, shown, len(gone))


def expected(judgement: Judgement | None, finding: Finding) -> bool:
    """Tell whether a finding is in the baseline that a judgement, if any, was made with."""
    baseline = judgement.baseline if judgement else None
    return baseline is not None and baseline.find(finding) is not None
