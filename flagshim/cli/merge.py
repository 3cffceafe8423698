"""`flagshim merge`."""

from pathlib import Path

import click

from flagshim.cli.output import Progress
from flagshim.errors import EXIT_FAILURE, FlagshimError
from flagshim.reports.text import command_line, printable
from flagshim.saying import say
from flagshim.trace.merging import Merged, Merging


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: flagshim merge -o fleet.db /var/lib/flagshim/*/*.db",
)
@click.option("-o", "--output", "target", metavar="FILE", required=True,
              type=click.Path(path_type=Path),
              help="Trace to add them to, made if missing.")  # fmt: skip
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
def merge(target: Path, traces: tuple[Path, ...]) -> int:
    """Copy the sessions of other traces, from other machines too, into one trace.

    What is there already is not copied again, so that the same line may be run every night; a
    session that still ran the last time is brought up to date. The traces stay as they are, and
    may be written to meanwhile. One that cannot be read is left out, and named.

    Exit status: 0 if all were merged, 125 if one was left out.
    """
    total, left_out = Merged(), 0
    with Merging(target) as merging:
        for trace in traces:
            try:
                with Progress(f"merging {printable(str(trace))}") as progress:
                    merged = merging.add(trace, tick=progress.tick)
                total = Merged(*map(sum, zip(total, merged, strict=True)))
            except FlagshimError as error:
                say(f"{error}; left out")
                left_out += 1
    parts = [f"{_sessions(total.added)} added"]
    if total.renewed:
        parts.append(f"{total.renewed} brought up to date")
    if total.known:
        parts.append(f"{total.known} there before")
    if left_out:
        parts.append(f"{left_out} of {len(traces)} traces left out")
    say(f"{', '.join(parts)}; see: {command_line(['flagshim', 'report', str(target)])}")
    return EXIT_FAILURE if left_out else 0


def _sessions(count: int) -> str:
    return f"{count} session" if count == 1 else f"{count} sessions"
