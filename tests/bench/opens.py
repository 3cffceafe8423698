"""Opens: one that has O_NOATIME and is refused for it, and one that nobody looks at."""

import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flagshim.errors import FlagshimError
from tests.bench.contestants import Bench, Contestant
from tests.bench.quiet import Quiet, cpus
from tests.bench.rounds import Measure, Series, take_turns


@dataclass(frozen=True)
class Counts:
    """How many opens are made in a row: primes, so that a miscount shows."""

    stopped: int
    """By a contestant that stops at each."""
    aside: int
    """The same for a figure that no bound is about."""
    unstopped: int
    """By a contestant that does not stop."""


COUNTS = Counts(stopped=20_011, aside=5_003, unstopped=100_003)
QUICK_COUNTS = Counts(stopped=2_003, aside=503, unstopped=10_007)

REPEATS = 3
"""Turns for each round of the others where a percent more or less matters."""

TIMEOUT = 300.0

_STOPPING = (Contestant.STRACE, Contestant.STRACE_BPF)
_FLAGSHIM = (Contestant.FLAGSHIM, Contestant.NOTIFY)
_UNREFUSED = (Contestant.PRELOAD, *_FLAGSHIM)


@dataclass(frozen=True)
class Opens:
    """Microseconds for an open and its close, as the program itself measured them."""

    refused: Series
    """O_NOATIME on somebody else's file. Native and under strace it stays refused."""
    crowded: Series | None
    """The same with only one CPU to be had; None where there is no other anyway."""
    allowed: Series
    """O_NOATIME on one's own file."""
    plain: Series
    """No O_NOATIME."""
    counts: Counts


def measure(bench: Bench, rounds: int, quick: bool, quiet: Quiet) -> Opens:
    """Measure all of these.

    Raises:
        FlagshimError: a contestant did not do what it is measured for.
    """
    counts = QUICK_COUNTS if quick else COUNTS
    refusing: dict[Contestant, Measure] = {}
    allowed: dict[Contestant, Measure] = {}
    plain: dict[Contestant, Measure] = {}
    for how in Contestant:
        refusing[how] = partial(_noatime, bench, how, counts.stopped, bench.refused)
        plainly = counts.aside if how in _STOPPING else counts.unstopped
        plain[how] = partial(_plain, bench, how, plainly)
    for how in (Contestant.NATIVE, Contestant.STRACE_BPF, *_FLAGSHIM):
        allowed[how] = partial(_noatime, bench, how, counts.aside, bench.owned)
    crowded = None
    if cpus() > 1:
        with quiet.crowd(bench.spinner):
            crowded = take_turns(refusing, rounds, quiet)
    return Opens(
        take_turns(refusing, rounds, quiet),
        crowded,
        take_turns(allowed, rounds, quiet),
        take_turns(plain, rounds * REPEATS, quiet),
        counts,
    )


def _noatime(bench: Bench, how: Contestant, count: int, file: Path) -> float:
    refusals = 0 if file == bench.owned or how in _UNREFUSED else count
    spent = _run(bench, how, ["noatime", str(count), str(file)], count, refusals)
    logged = _logged(bench, how)
    if logged not in (None, count):
        raise FlagshimError(f"{how} wrote {logged} of {count} opens down", "is the disk full?")
    return spent


def _plain(bench: Bench, how: Contestant, count: int) -> float:
    spent = _run(bench, how, ["plain", str(count), str(bench.refused)], count, 0)
    if how in _FLAGSHIM and _logged(bench, how):
        raise FlagshimError("flagshim looked at opens without O_NOATIME", "see flagshim doctor")
    return spent


def _run(bench: Bench, how: Contestant, words: list[str], count: int, refusals: int) -> float:
    """Return microseconds an open; `refusals` is how many are to be refused."""
    bench.clear()
    command = bench.command(how, [str(bench.opener), *words], bench.user)
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=bench.environment(how),
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise FlagshimError(f"{how}: {done.stderr.strip() or done.returncode}", "try it by hand")
    nanoseconds, refused = map(int, done.stdout.split())
    if refused != refusals:
        raise FlagshimError(
            f"{how}: {refused} of {count} opens were refused, expected {refusals}",
            "does the filesystem of the temporary folder know owners?",
        )
    return nanoseconds / count / 1000


def _logged(bench: Bench, how: Contestant) -> int | None:
    """Count the opens with O_NOATIME in what a contestant wrote; None for one that does not."""
    if how in _STOPPING:
        with open(bench.log, errors="replace") as log:
            return sum("O_NOATIME" in line for line in log)
    if how in _FLAGSHIM:
        with closing(sqlite3.connect(f"{bench.trace.as_uri()}?mode=ro", uri=True)) as trace:
            return int(trace.execute("SELECT count(*) FROM event").fetchone()[0])
    return None
