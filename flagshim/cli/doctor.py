"""`flagshim doctor`."""

import io
import sys
from contextlib import nullcontext

import click

from flagshim.cli.output import color_option, palette, standard_output
from flagshim.errors import EXIT_FAILURE
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
@color_option
def doctor(format_: str, color: str) -> int:
    """Find out by trying what this machine allows, and what would help.

    works: nothing is amiss. limited: flagshim works without, not as well or not for
    everything. no: it is not there. What is tried is tried in child processes that end with
    it; nothing on the machine is changed, and no other process is looked into.

    Exit status: 0 if flagshim run can work here, 125 if not.
    """
    findings = []
    paint = palette(color)
    # Where standard output is closed, the exit status says it too.
    with standard_output() if sys.stdout else nullcontext(io.StringIO()) as out:
        for finding in examine():
            findings.append(finding)
            if format_ == "table":
                out.write(paragraph(finding, paint) + "\n")
                out.flush()  # the next probe may take its time
        out.write(f"\n{verdict(findings)}\n" if format_ == "table" else document(findings) + "\n")
    return EXIT_FAILURE if missing(findings) else 0
