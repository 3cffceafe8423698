"""`python -m tests.bench.watch`: what `flagshim watch` costs a program that it does not watch.

An open and its close, natively and while another process is watched, in turns: ratios of
CPU time within one run. With --all also what it costs to be watched without being told of.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from flagshim.errors import EXIT_FAILURE, FlagshimError
from tests.bench.contestants import Bench, bench
from tests.support import flagshim_command

COUNT = 100_003


def main() -> int:
    """Measure, print a line for each way of watching, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watch", description=__doc__)
    parser.add_argument("--rounds", metavar="N", type=int, default=7)
    parser.add_argument("--all", action="store_true", help="also watch everybody, which sees all")
    options = parser.parse_args()
    ways = [("another process is watched", ["-p", str(os.getpid())])]
    if options.all:
        ways.append(("everybody is watched", ["--all", "--errno", "EXFULL"]))
    try:
        with bench() as place:
            for name, words in ways:
                ratios = sorted(_round(place, words) for _ in range(options.rounds))
                low, high = ratios[0], ratios[-1]
                print(f"{name}: {median(ratios):.3f} ({low:.3f} to {high:.3f}) of native")
    except FlagshimError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _round(place: Bench, words: list[str]) -> float:
    native = _opens(place)
    with _watching(words):
        watched = _opens(place)
    return watched / ((native + _opens(place)) / 2)


def _opens(place: Bench) -> float:
    """Return the CPU time of the opens, in seconds: other work on the machine is not in it."""
    command = [str(place.opener), "plain", str(COUNT), str(place.refused)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def _watching(words: list[str]) -> Iterator[None]:
    process = subprocess.Popen(
        [*flagshim_command(), "watch", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    try:
        if "^C ends it" not in line:
            raise FlagshimError(line.strip(), "see flagshim doctor")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


if __name__ == "__main__":
    sys.exit(main())
