"""A supervisor that lives as long as a VM: memory stays flat, the trace stays bounded.

FLAGSHIM_STORM=1000003 makes the storm a real one; the default is what a test run has time for.
"""

import os
import subprocess
import time
from pathlib import Path
from statistics import median

from tests.kernel.conftest import Build, Place, Runner
from tests.kernel.storms import PROCESSES, THREADS, hold, new_log, times_in
from tests.processes import children, role_of
from tests.support import REPOSITORY, rows

OPENS = int(os.environ.get("FLAGSHIM_STORM", "200003"))
KEPT = 10_007
MINUTES = 10


def resident(pid: int) -> int:
    """Kilobytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_memory_is_flat_and_the_trace_bounded(build: Build, run: Runner, place: Place) -> None:
    log = place.path / "log"
    new_log(log, OPENS, held=1)
    storm = [build("endure"), str(PROCESSES), str(THREADS), str(OPENS), str(place.file), str(log)]
    command = run.command(storm, "--keep", str(KEPT))
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    samples: list[tuple[int, int, int, int]] = []
    deadline = time.monotonic() + 60 * MINUTES
    keeper = 0
    while process.poll() is None:
        assert time.monotonic() < deadline
        try:
            if not keeper:
                keeper = next(
                    pid for pid in children(process.pid)
                    if role_of(pid).startswith("keeper of ")
                )  # fmt: skip
            (seen,) = rows(run.trace, "SELECT seen FROM session")[0]
            size = sum(file.stat().st_size for file in run.trace.parent.glob("trace1.db*"))
            samples.append((seen, resident(process.pid), resident(keeper), size))
            if seen == OPENS - PROCESSES * THREADS:
                hold(log, 0)
        except (OSError, StopIteration, IndexError):
            continue  # not begun, or ended meanwhile
        time.sleep(0.05)
    assert process.returncode == 7
    assert process.stderr is not None
    assert f"{OPENS} of {OPENS} opens rewritten" in process.stderr.read()
    at = next(index for index, sample in enumerate(samples) if sample[0] > 100_003)
    early, late = samples[at], samples[at:]
    print(f"(opens, supervisor kB, keeper kB, trace bytes): {early} {late[-1]}")
    for who in (1, 2):
        # The median: where the keeper gets no CPU for a while, the supervisor holds events for it.
        assert median(sample[who] for sample in late) < early[who] * 1.1, late[:: len(late) // 7]
    assert max(sample[3] for sample in samples) < 30_000_000
    assert min(times_in(log)) > 0, "none failed"
    assert rows(run.trace, "SELECT count(*) FROM event") == [(KEPT,)]
    assert rows(run.trace, "SELECT sum(opens) FROM dropped") == [(OPENS - KEPT,)]
    assert rows(run.trace, "SELECT seen, lost FROM session") == [(OPENS, 0)]
