"""What became of a gate, in lines for people."""

from collections.abc import Iterator

from flagshim.gates.baseline import Finding, literally, texts
from flagshim.gates.judgement import Difference, Judgement
from flagshim.reports import baselinefile
from flagshim.reports.palette import PLAIN, Palette
from flagshim.reports.text import printable

SHOWN = 20
"""Lines of a difference shown, of either kind."""


def verdict(judgement: Judgement) -> str:
    """Return one line: failed for what, or passed."""
    beyond = f", beyond {_name(judgement.difference)}" if judgement.difference else ""
    failed = [
        f"{judged.condition} ({judged.count})" for judged in judgement.judged if judged.failed
    ]
    text = f"gate failed: {', '.join(failed)}{beyond}" if failed else "gate passed"
    if judgement.lost:
        text += f"; {judgement.lost} opens are not in the trace, see --fail-on 'lost events'"
    if judgement.unended:
        sessions = "session has" if judgement.unended == 1 else "sessions have"
        text += f"; {judgement.unended} {sessions} no end: nobody knows what came later"
    return text


def difference_lines(difference: Difference, paint: Palette = PLAIN) -> Iterator[str]:
    """Return lines as diff(1) has them: + for what is not expected, - for what did not come."""
    for finding in difference.new[:SHOWN]:
        yield paint.bad(f"  + {finding_line(finding)}")
    if difference.new_count > SHOWN:
        yield paint.bad(f"  + and {difference.new_count - SHOWN} more that are new")
    for entry in difference.gone[:SHOWN]:
        yield paint.fair(f"  - {baselinefile.line(entry)}  (not this time)")
    if difference.gone_count > SHOWN:
        yield paint.fair(f"  - and {difference.gone_count - SHOWN} more that did not come")


def finding_line(finding: Finding) -> str:
    """Return what a baseline would need to expect this, and how many opens it was."""
    return f"{baselinefile.line(literally(texts(finding)))}  ({finding.opens}x)"


def _name(difference: Difference) -> str:
    return printable(difference.baseline)
