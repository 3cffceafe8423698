"""`python -m tests.bench.reports`: a trace with 1,000,003 opens, and the sqlite3 shell beside it.

Each round reads the trace with `sqlite3 TRACE 'SELECT * FROM event'` and then makes each report;
the figure is the ratio of their CPU times, which other work on the machine disturbs least. The
table is Markdown.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flagshim.trace.events import OpenEvent
from tests.bench import machine
from tests.support import REPOSITORY, flagshim_command
from tests.unit.tracebuilder import KEPT, OPEN, START, STILL_REFUSED, Trace

EVENTS = 1_000_003
ROUNDS = 3
SHELL = "sqlite3, SELECT * FROM event"
REPORTS = {
    "table": (),
    "table, --view paths": ("--view", "paths"),
    "html": ("--format", "html"),
    "junit": ("--format", "junit"),
    "markdown": ("--format", "markdown"),
    "table, --fail-on": ("--fail-on", "refusals < 0"),
}


class Run(NamedTuple):
    """One process: how long, how much of that on a CPU, and how much memory at its worst."""

    seconds: float
    cpu_seconds: float
    mib: float


def main() -> int:
    """Make the traces, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reports", description=__doc__)
    parser.add_argument("--events", metavar="N", type=int, default=EVENTS)
    parser.add_argument("--rounds", metavar="N", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flagshim-bench-") as folder:
        before = machine.load()
        for what, files in (("50,021 files", 50_021), ("every file but once", options.events)):
            trace = make(Path(folder, f"{files}.db"), options.events, files)
            print(f"\n{options.events:,} opens of {what}; {trace.stat().st_size / 2**20:.0f} MiB\n")
            measure(trace, options.rounds)
        on = ", ".join(f"{name} {value}" for name, value in machine.describe().items())
        print(f"\n{on}; load {before:.2f} before, {machine.load():.2f} at the end")
    return 0


def make(path: Path, events: int, files: int) -> Path:
    """Write a trace: a third kept, one in 1009 refused, 5 µs apart, in 997 folders."""
    trace = Trace(path)
    trace.session(seen=events)
    trace.events(_event(number, files) for number in range(events))
    return trace.close()


def _event(number: int, files: int) -> OpenEvent:
    how = KEPT if number % 3 == 0 else STILL_REFUSED if number % 1009 == 0 else {}
    file = number * 7919 % files
    return OPEN._replace(
        time_ns=START + number * 5000,
        path=f"file-{file}",
        resolved=f"/nix/store/{file % 997:03}-package/lib/file-{file:07}.so",
        **how,  # type: ignore[arg-type]
    )


def measure(trace: Path, rounds: int) -> None:
    """Run everything `rounds` times and print a row for each."""
    page = trace.with_suffix(".html")
    runs: dict[str, list[Run]] = {SHELL: [], **{name: [] for name in REPORTS}}
    for _ in range(rounds):
        shell = ["sqlite3", "-readonly", str(trace), "SELECT * FROM event"]
        runs[SHELL].append(_timed(shell, Path(os.devnull)))
        for name, arguments in REPORTS.items():
            command = [*flagshim_command(), "report", str(trace), *arguments]
            output = page if name == "html" else Path(os.devnull)
            runs[name].append(_timed(command, output))
    print("| | s, median (best to worst) | CPU s | CPU, of the sqlite3 shell | MiB at most |")
    print("|---|---|---|---|---|")
    for name, found in runs.items():
        shells = runs[SHELL]
        ratios = [run.cpu_seconds / by.cpu_seconds for run, by in zip(found, shells, strict=True)]
        columns = [r.seconds for r in found], [r.cpu_seconds for r in found], ratios
        memory = max(run.mib for run in found)
        print(f"| {name} | {' | '.join(map(_spread, columns))} | {memory:.0f} |", flush=True)
    print(f"\nThe page: {page.stat().st_size / 2**20:.1f} MiB; in Chromium {_in_browser(page)}")


def _timed(command: Sequence[str], output: Path) -> Run:
    with open(output, "wb") as out:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, cwd=REPOSITORY)
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench: {command} exited with {process.returncode}: {said.decode()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _spread(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples):.2f} ({min(samples):.2f} to {max(samples):.2f})"


def _in_browser(page: Path) -> str:
    # Not before: what this process holds, its children are charged for until they exec.
    from tests.unit.browser import chromium, obstacle, opened

    if problem := obstacle():
        return f"not looked at: {problem}"
    with chromium() as browser:
        began = time.monotonic()
        with opened(browser, page) as seen:
            ready = time.monotonic() - began
            began = time.monotonic()
            seen.page.fill("#search", "file-0000007")
            seen.page.wait_for_function(
                "() => !document.querySelector('#matches').textContent.startsWith('100,000 ')"
            )
            searched = time.monotonic() - began
            began = time.monotonic()
            seen.page.fill("#search", "")
            seen.page.click("#events .tabulator-col[tabulator-field=path] .tabulator-col-title")
            seen.page.wait_for_function(
                "() => document.querySelector('#matches').textContent.startsWith('100,000 ')"
            )
            ordered = time.monotonic() - began
    return f"ready after {ready:.1f} s, searched in {searched:.1f} s, sorted in {ordered:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
