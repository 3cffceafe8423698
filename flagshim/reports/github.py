"""A trace for GitHub Actions: annotations on standard output, and the step's summary.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from collections import Counter
from typing import TextIO

from flagshim.gates.judgement import Judgement
from flagshim.reports import markdown
from flagshim.reports.issues import Issue, Severity, issues
from flagshim.reports.view import Selection
from flagshim.trace.reader import TraceReader

SHOWN = 10
"""Annotations of a level that GitHub shows of one step; it drops the rest without a word."""
_LOOKED_AT = 100_003
"""Files considered at most."""

_LEVELS = {
    Severity.INFO: "notice",
    Severity.MINOR: "warning",
    Severity.MAJOR: "warning",
    Severity.CRITICAL: "error",
    Severity.BLOCKER: "error",
}


def write(
    reader: TraceReader,
    selection: Selection,
    judgement: Judgement | None,
    out: TextIO,
    summary: TextIO | None,
) -> None:
    """Write annotations, ten of a level at most, and the summary in Markdown.

    Args:
        summary: $GITHUB_STEP_SUMMARY, opened to append to; None: there is none.

    Raises:
        FlagshimError: the trace is damaged.
    """
    levels: Counter[str] = Counter()
    held: dict[str, Issue] = {}
    for issue in issues(reader, selection.since_ns, judgement, _LOOKED_AT):
        level = _LEVELS[issue.severity]
        levels[level] += 1
        if levels[level] < SHOWN:
            out.write(_annotation(level, issue.check, issue.text))
        elif levels[level] == SHOWN:
            held[level] = issue
    for level, issue in held.items():
        more = levels[level] - SHOWN + 1
        if more == 1:
            out.write(_annotation(level, issue.check, issue.text))
        else:
            text = f"{more} more; flagshim report shows them"
            out.write(_annotation(level, issue.check, text))
    if summary:
        markdown.write(reader, selection, judgement, summary)


def _annotation(level: str, check: str, text: str) -> str:
    return f"::{level} title={_property(f'flagshim: {check}')}::{_data(text)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
