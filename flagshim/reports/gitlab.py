"""A trace as GitLab's Code Quality report, whose widget shows what a merge request adds.

https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
"""

import hashlib
import json
import os
from pathlib import PurePath
from typing import TextIO

from flagshim.gates.judgement import Judgement
from flagshim.reports.issues import LONGEST, Issue, issues
from flagshim.reports.text import printable, shorten
from flagshim.reports.view import Selection
from flagshim.trace.reader import TraceReader

LIMIT = 1000
"""Files named if nobody says how many."""


def write(
    reader: TraceReader, selection: Selection, judgement: Judgement | None, out: TextIO, root: str
) -> None:
    """Write an array of issues; what is written is ASCII.

    Args:
        root: the folder that paths are relative to, $CI_PROJECT_DIR.

    Raises:
        FlagshimError: the trace is damaged.
    """
    found = issues(reader, selection.since_ns, judgement, selection.limit or LIMIT)
    separator = "[\n"
    for issue in found:
        out.write(separator + json.dumps(_issue(issue, reader.path, root)))
        separator = ",\n"
    out.write("[]\n" if separator == "[\n" else "\n]\n")


def _issue(issue: Issue, trace: str, root: str) -> dict[str, object]:
    path = _relative(os.fsdecode(trace if issue.path is None else issue.path), root)
    return {
        "type": "issue",
        "description": issue.text,
        "check_name": f"flagshim/{issue.check}",
        "categories": ["Compatibility"],
        "severity": str(issue.severity),
        "fingerprint": hashlib.sha256(f"{issue.check}\0{issue.key}".encode()).hexdigest(),
        "location": {"path": shorten(printable(path), LONGEST), "lines": {"begin": 1}},
    }


def _relative(path: str, root: str) -> str:
    """Return a path as GitLab wants it: below the project's folder, and without a slash before."""
    absolute = PurePath(os.path.abspath(path)) if path.startswith("/") else PurePath(root, path)
    if absolute.is_relative_to(root) and absolute != PurePath(root):
        return str(absolute.relative_to(root))
    return str(absolute).lstrip("/") or "."
