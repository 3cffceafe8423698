"""What the probes found, for people and for programs."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict

from flagshim.probes import PROBES, Finding, Status, missing
from flagshim.reports.palette import PLAIN, Palette
from flagshim.reports.text import printable

WIDTH = 80
_STATUS_WIDTH = max(map(len, Status))
_PROBE_WIDTH = max(len(probe.name) for probe in PROBES)


def paragraph(finding: Finding, paint: Palette = PLAIN) -> str:
    """Return one finding as a line, and as many more as its detail and help take."""
    status = f"{finding.status:<{_STATUS_WIDTH}}"
    head = f"{status}  {printable(finding.probe):<{_PROBE_WIDTH}}  "
    blank = " " * len(head)
    lines = _wrapped(finding.detail, head, blank)
    if finding.help:
        lines += _wrapped(finding.help, f"{blank}help: ", f"{blank}      ")
    dress = {Status.WORKS: paint.good, Status.LIMITED: paint.fair}.get(finding.status, paint.bad)
    return dress(status) + "\n".join(lines).removeprefix(status)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    wrapped = textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
    )
    return wrapped or [first.rstrip()]


def verdict(findings: Iterable[Finding]) -> str:
    """Return the last line: whether `flagshim run` can work here."""
    lacking = ", ".join(finding.probe for finding in missing(findings))
    return f"flagshim run {f'cannot work here: {lacking}' if lacking else 'can work here'}."


def document(findings: Iterable[Finding]) -> str:
    """Return all findings as a JSON array, one a line; what is returned is ASCII."""
    return "[\n" + ",\n".join(json.dumps(asdict(finding)) for finding in findings) + "\n]"
