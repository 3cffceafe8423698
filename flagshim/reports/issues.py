"""What a trace has that a reviewer should look at, the worst first; for GitHub and GitLab."""

from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from flagshim.gates.baseline import Effect, Finding, findings
from flagshim.gates.judgement import Judgement, expected
from flagshim.reports.notes import SessionNotes
from flagshim.reports.text import command_line, printable, shorten
from flagshim.trace.reader import TraceReader
from flagshim.trace.records import Name

LONGEST = 500
"""Characters of a name or a command that are shown."""


class Severity(StrEnum):
    """How much it matters, in the words of GitLab's Code Quality."""

    INFO = "info"
    MINOR = "minor"
    MAJOR = "major"
    CRITICAL = "critical"
    BLOCKER = "blocker"


class Issue(NamedTuple):
    """One thing to look at."""

    severity: Severity
    check: str
    """What kind of thing it is: "refused", "gate" …"""
    text: str
    """One sentence, printable."""
    path: Name
    """The file it is about, if any."""
    key: str
    """The same in the next run, if it is there again."""


_SEVERITIES = {
    Effect.REWRITTEN: Severity.INFO,
    Effect.FAILED: Severity.MINOR,
    Effect.REFUSED: Severity.CRITICAL,
}
_WORDS = {
    Effect.REWRITTEN: "made without a flag",
    Effect.FAILED: "made without a flag, and failed all the same",
    Effect.REFUSED: "refused by the kernel",
}


def issues(
    reader: TraceReader, since_ns: int | None, judgement: Judgement | None, limit: int
) -> Iterator[Issue]:
    """Return why a gate failed, what is not in the trace, and what is not in the baseline.

    Args:
        since_ns: leave out what was seen before, in nanoseconds since the epoch.
        judgement: what became of the gate; None: there was none, and no baseline.
        limit: at most so many issues about files.
    """
    for judged in judgement.judged if judgement else ():
        if judged.failed:
            text = f"{judged.condition}: {judged.count}"
            if judgement and judgement.difference:
                text += f" beyond {printable(judgement.difference.baseline)}"
            yield Issue(Severity.BLOCKER, "gate", text, None, str(judged.condition))
    yield from _gaps(reader, since_ns)
    unexpected = (
        finding
        for opened in reader.opened(since_ns)
        for finding in findings(opened)
        if not expected(judgement, finding)
    )
    new = judgement is not None and judgement.baseline is not None
    for finding in islice(unexpected, limit):
        yield _about(finding, new)


def _about(finding: Finding, new: bool) -> Issue:
    severity = _SEVERITIES[finding.effect]
    if new and severity is not Severity.CRITICAL:
        severity = Severity.MAJOR
    name = shorten(printable(finding.path), LONGEST)
    program = shorten(printable(finding.program), LONGEST)
    rule = f" (rule {printable(finding.rule)})" if finding.rule else ""
    text = (
        f"{'new: ' if new else ''}{program} opened {name} ({finding.opens}x): "
        f"{_WORDS[finding.effect]}{rule}"
    )
    key = "\0".join(map(printable, (finding.rule, finding.program, finding.path)))
    return Issue(severity, str(finding.effect), text, finding.path, key)


def _gaps(reader: TraceReader, since_ns: int | None) -> Iterator[Issue]:
    notes = SessionNotes(reader)
    for session in reader.sessions(since_ns):
        command = shorten(command_line(session.command), LONGEST)
        missing = notes.missing(session)
        if missing:
            text = f"{missing} opens of `{command}` are not in the trace"
            yield Issue(Severity.MAJOR, "lost", text, None, command)
        for spot in notes.blind_spots(session):
            text = f"{printable(spot.program)} may have opened files unseen: {spot.kind}"
            yield Issue(Severity.MINOR, "unseen", text, None, f"{spot.kind}\0{spot.program!r}")
