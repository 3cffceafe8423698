"""Process start: how long `true` takes, from before its fork to after its end."""

import subprocess
import time
from functools import partial

from flagshim.errors import FlagshimError
from tests.bench.contestants import Bench, Contestant
from tests.bench.rounds import Series, take_turns

REPEATS = 3
"""Turns for each round of the others: one takes milliseconds."""


def measure(bench: Bench, rounds: int) -> Series:
    """Return milliseconds."""
    turns = {how: partial(_start, bench, how) for how in Contestant}
    return take_turns(turns, rounds * REPEATS, quiet=None)


def _start(bench: Bench, how: Contestant) -> float:
    bench.clear()
    command, environment = bench.command(how, ["true"], None), bench.environment(how)
    before = time.monotonic_ns()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
    )
    spent = time.monotonic_ns() - before
    if done.returncode:
        raise FlagshimError(f"{how}: true ended with {done.returncode}", "try it by hand")
    return spent / 1e6
