"""`flagshim doctor`."""

import os
import sys

import click

from flagshim.errors import EXIT_FAILURE, FlagshimError
from flagshim.probes import examine, missing
from flagshim.reports.doctor import document, paragraph, verdict


@click.command("doctor")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people; for programs: an array of objects with probe, status, detail and help.",
)
def doctor(format_: str) -> int:
    """Find out by trying what this machine allows, and what would help.

    works: nothing is amiss. limited: flagshim works without, not as well or not for
    everything. no: it is not there. What is tried is tried in child processes that end with
    it; nothing on the machine is changed, and no other process is looked into.

    Exit status: 0 if flagshim run can work here, 125 if not.
    """
    findings = []
    for finding in examine():
        findings.append(finding)
        if format_ == "table":
            _say(paragraph(finding))
    if format_ == "table":
        _say("\n" + verdict(findings))
    else:
        _say(document(findings))
    return EXIT_FAILURE if missing(findings) else 0


def _say(text: str) -> None:
    """Print at once: the next probe may take its time."""
    out = sys.stdout
    if out is None:  # closed; the exit status says it too
        return
    encoding = out.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=out, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python would fail at its end to write what is left in the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        raise FlagshimError(f"standard output: {error.strerror}") from None
