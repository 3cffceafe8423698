"""`make bench`: measure flagshim beside native, LD_PRELOAD and strace, in one run.

The table goes to standard output, progress to standard error. Exits with 1 if --check is
given and a bound is missed, with 125 if something could not be measured.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

from flagshim.errors import EXIT_FAILURE, FlagshimError
from tests.bench import guest, machine, memory, opens, starts
from tests.bench.contestants import Bench, Contestant, bench
from tests.bench.quiet import Quiet
from tests.bench.report import markdown
from tests.bench.results import Results, bounds

ROUNDS = 7
QUICK_ROUNDS = 3
GUEST_ROUNDS = 3
"""At most: a boot takes seconds."""
PATIENCE = 240.0
QUICK_PATIENCE = 20.0
"""Seconds lost at most to waiting for a quiet machine."""


def main() -> int:
    """Run all measurements, print what came of them, and return the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and clean up
    try:
        with bench() as place:
            results = _measure(place, options)
    except (FlagshimError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILURE
    print(markdown(results, _command(options)))
    if options.json:
        options.json.write_text(json.dumps(results.as_json(), indent=2) + "\n")
    missed = [bound for bound in bounds(results) if not bound.met]
    return 1 if options.check and missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", metavar="N", type=_positive, help=f"default: {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, for a look")
    parser.add_argument("--no-guest", action="store_true", help="boot no guest")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample there")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is missed")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _measure(place: Bench, options: argparse.Namespace) -> Results:
    quick = options.quick
    rounds = options.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    quiet = Quiet(QUICK_PATIENCE if quick else PATIENCE)
    before = machine.load()
    _say(f"opens, rounds: {rounds}")
    opened = opens.measure(place, rounds, quick, quiet)
    _say("starts")
    started = starts.measure(place, rounds)
    _say("memory")
    footprints = {
        how: memory.measure(place, how, opened.counts.stopped)
        for how in (Contestant.STRACE_BPF, Contestant.FLAGSHIM, Contestant.NOTIFY)
    }
    if options.no_guest:
        read: guest.Reading | str = "--no-guest was given"
    else:
        _say("guests, 5 to 25 seconds each")
        read = guest.measure(place, 1 if quick else min(rounds, GUEST_ROUNDS), quick, quiet)
    load = (before, machine.load())
    return Results(machine.describe(), load, quiet, opened, started, footprints, read)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _command(options: argparse.Namespace) -> str:
    """Return what to type for the same figures."""
    words = [f"--rounds {options.rounds}"] if options.rounds else []
    words += ["--quick"] if options.quick else []
    words += ["--no-guest"] if options.no_guest else []
    return " ".join(("python -m tests.bench", *words)) if words else "make bench"


if __name__ == "__main__":
    sys.exit(main())
