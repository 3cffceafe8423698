"""What is the matter, for people: storm, causes, remedies, and what could not be seen."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flagshim.diagnosis.collection import Collection, Group
from flagshim.reports.text import command_line, duration, printable

WIDTH = 96
_PATHS = 3


@dataclass(frozen=True)
class Scope:
    """What was looked at, and what that leaves out."""

    what: str
    """As in "PID 42"."""
    seconds: float
    opens: int
    """Calls that were looked at, whatever came of them."""
    failed: Counter[str]
    """Of these the failed ones, by error."""
    unseen: tuple[str, ...]
    """What may have escaped, a clause each."""


def text_of(collection: Collection, scope: Scope) -> str:
    """Return the whole account."""
    failed = scope.failed.total()
    errors = ", ".join(f"{name} {count}" for name, count in scope.failed.most_common())
    looked = f"{scope.what}, {duration(int(scope.seconds * 1e9))}: {_opens(scope.opens)}, "
    looked += f"{failed} failed" + (f" ({errors})" if errors else "")
    whole = "all failed opens"
    if collection.spared:  # would have failed, too
        looked += f", {collection.spared} spared by flagshim"
        whole = "all that failed or were spared"
    total = failed + collection.spared
    parts = [_wrap(f"{looked}.", ""), _storm(collection)]
    for number, group in enumerate(collection.groups(), 1):
        parts.append(_group(number, group, total, whole))
    if scope.unseen:
        parts.append(_wrap("Not seen: " + "; ".join(scope.unseen) + ".", ""))
    return "\n\n".join(parts) + "\n"


def _opens(count: int) -> str:
    return f"{count} {'open' if count == 1 else 'opens'}"


def _storm(collection: Collection) -> str:
    storm = collection.storm
    if not storm.count:
        return "No open was refused with EPERM."
    spared = collection.spared
    what = f"{storm.count} EPERM" + (f" ({spared} of them spared by flagshim)" if spared else "")
    span = (storm.last_ns - storm.first_ns) / 1e9
    name = "Storm" if storm.is_storm else "No storm"
    worst = storm.paths.most_common(1)[0][1]
    programs = ", ".join(
        f"{printable(program)} {count}" for program, count in storm.programs.most_common(5)
    )
    return _wrap(
        f"{name}: {what} in {duration(int(span * 1e9))}, {storm.peak} in the busiest second; "
        f"{len(storm.paths)} different {'file' if len(storm.paths) == 1 else 'files'}, "
        f"one up to {worst} {'time' if worst == 1 else 'times'}; by {programs}.",
        "",
    )


def _group(number: int, group: Group, total: int, whole: str) -> str:
    explanation = group.explanation
    share = f"{100 * group.count / total:.1f} % of {whole}" if total else ""
    lines = [
        _wrap(f"{number}. {printable(explanation.title)}: {group.count} EPERM, {share}", "   ")
    ]
    paths = ", ".join(
        f"{printable(path)}" + (f" ({count} times)" if count > 1 else "")
        for path, count in group.paths.most_common(_PATHS)
    )
    more = len(group.paths) - _PATHS
    sure = f"{explanation.sureness}: {explanation.why}"
    if group.assumed and group.retried < group.count:
        examined = group.count - group.assumed
        sure += f"; {examined} were examined, the others are like them in program and flags"
    for title, text in (
        ("program", printable(group.program)),
        ("paths", paths + (f" and {more} more" if more > 0 else "")),
        ("because", sure),
    ):
        lines.append(_labelled(title, printable(text) if title == "because" else text))
    title = "remedy"
    for command in explanation.commands:
        lines.append(f"   {title:<9}{_typed(command)}")
        title = ""
    if explanation.advice:
        lines.append(_labelled(title, explanation.advice))
    return "\n".join(lines)


def _typed(command: Sequence[str]) -> str:
    """Return a command as a shell takes it; "…" stands for what is left to the reader."""
    return " ".join(word if word == "…" else command_line([word]) for word in command)


def _labelled(title: str, text: str) -> str:
    return _wrap(text, f"   {title:<9}", " " * 12)


def _wrap(text: str, first: str, others: str | None = None) -> str:
    if others is None:
        others, first = first, ""
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=others,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
