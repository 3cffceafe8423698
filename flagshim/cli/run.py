"""`flagshim run`."""

import os
import resource
import signal
import sys
from pathlib import Path

import click

from flagshim.engines.command import find_user
from flagshim.errors import FlagshimError
from flagshim.reports.text import command_line
from flagshim.rules import BUILT_IN, Rule, When, load_rules
from flagshim.session import Outcome, supervise
from flagshim.trace.location import new_trace


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
    epilog="Example: flagshim run -u nobody -- qemu-system-x86_64 -fsdev local,…",
)
@click.option("-u", "--user", metavar="USER", help="Start CMD as USER (root only); see LIMITS.")
@click.option("-o", "--output", "trace", metavar="FILE", type=click.Path(path_type=Path),
              help="Add a session to the trace FILE, made if missing. "
              "Default: a new file in $XDG_STATE_HOME/flagshim.")  # fmt: skip
@click.option("--when", type=click.Choice([when.value for when in When]),
              help="Clear a flag only where the kernel refuses the open for it (refused, the "
              "default), or wherever it is given (always).")  # fmt: skip
@click.option("--clear", metavar="FLAG", multiple=True,
              help="Flag to clear; repeatable. Default: O_NOATIME.")  # fmt: skip
@click.option("--path", "paths", metavar="GLOB", multiple=True,
              help="Only for paths that match, as in '/nix/store/**'; repeatable.")  # fmt: skip
@click.option("--rules", "rule_file", metavar="FILE.toml", type=click.Path(path_type=Path),
              help="Take the rules from a file instead of the three options above.")  # fmt: skip
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED, metavar="-- CMD [ARG]...")
def run(
    user: str | None,
    trace: Path | None,
    when: str | None,
    clear: tuple[str, ...],
    paths: tuple[str, ...],
    rule_file: Path | None,
    cmd: tuple[str, ...],
) -> int:
    """Run CMD supervised, wait for it and all it started, and exit as CMD exits.

    By default O_NOATIME is cleared where the kernel would refuse the open for it (EPERM, for
    whoever does not own the file), and nowhere else. Every open that carried the flag goes
    into a trace, an SQLite file; `flagshim report` shows it.

    Exit status: CMD's own; a fatal signal is raised again. 125: flagshim failed. 126: CMD
    could not be executed. 127: CMD was not found.
    """
    if not cmd:
        raise FlagshimError("no CMD", "as in flagshim run -- qemu-system-x86_64 …")
    rules = _rules(when, clear, paths, rule_file)
    as_user = find_user(user) if user is not None else None
    file = trace or new_trace(cmd[0])
    outcome = supervise(cmd, rules, file, as_user)
    _sum_up(outcome, file)
    return _exit_as(outcome.exit_status)


def _rules(
    when: str | None, clear: tuple[str, ...], paths: tuple[str, ...], rule_file: Path | None
) -> tuple[Rule, ...]:
    if rule_file is None:
        return (
            Rule(
                clear=clear or BUILT_IN.clear,
                when=When(when) if when else BUILT_IN.when,
                paths=paths,
            ),
        )
    if when or clear or paths:
        raise FlagshimError(
            "--rules together with --when, --clear or --path", "write it into the rule file"
        )
    return load_rules(rule_file)


def _sum_up(outcome: Outcome, trace: Path) -> None:
    """Print the last line on stderr: how many, of how many, and what to type next."""
    noun = "open" if outcome.seen == 1 else "opens"
    parts = [f"{outcome.cleared} of {outcome.seen} {noun} rewritten"]
    if outcome.still_refused:
        parts.append(f"{outcome.still_refused} failed all the same")
    if outcome.lost:
        parts.append(f"{outcome.lost} not in the trace ({outcome.trouble})")
    command = command_line(["flagshim", "report", str(trace)])
    print(f"flagshim: {', '.join(parts)}; see: {command}", file=sys.stderr)


def _exit_as(status: int) -> int:
    """Exit as CMD did: a fatal signal is raised again, without a core file of our own."""
    if status >= 0:
        return status
    number = -status
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number  # not reached, unless the signal cannot be raised here
