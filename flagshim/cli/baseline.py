"""`flagshim baseline`."""

from pathlib import Path

import click

from flagshim.cli.output import ending_as_coreutils, standard_output
from flagshim.cli.reading import reading, since_option, trace_argument
from flagshim.reports import baselinefile


@click.command("baseline")
@trace_argument
@click.option(
    "--exact",
    is_flag=True,
    help="Every path by itself. Default: a folder with more than 31 files, or lines, in it "
    "becomes one glob, with the number of its files above.",
)
@since_option("Only opens from then on")
def baseline(trace: Path | None, exact: bool, since: int | None) -> int:
    """Write what a trace has as a text file to review, edit and give to --baseline.

    A line for each path, or glob of paths, that was rewritten, refused or failed, with the
    rule and the program. Without TRACE, the latest in the state folder. What is in the file
    is what people agreed to: keep it beside the code.

    \b
    Example:
      flagshim run -o boot.db -- qemu-system-x86_64 ...
      flagshim baseline boot.db > opens.txt
      flagshim run --baseline opens.txt -- qemu-system-x86_64 ...
    """
    with (
        reading(trace) as (reader, progress),
        ending_as_coreutils(),
        standard_output(exact=True, first=progress.give_way) as out,
    ):
        baselinefile.write(reader, out, since, exact)
    return 0
