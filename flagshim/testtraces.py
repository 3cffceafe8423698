"""What a test session leaves: a trace for each process it started, and whose test that was."""

import json
import os
import secrets
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from flagshim.errors import FlagshimError
from flagshim.trace.events import Decision
from flagshim.trace.merging import Merging
from flagshim.trace.reader import TraceReader
from flagshim.tracee import has_ended

_TEST = "test.case.name"
_PATIENCE_SECONDS = 5.0
"""How long traces may take to be finished, all together: helpers end after their processes."""
_POLL_SECONDS = 0.02


class Started(NamedTuple):
    """A process that a test started."""

    test: str
    trace: str = ""
    """"" if it was not supervised."""
    pid: int = 0
    """0 if it has ended."""
    obstacle: str = ""
    """Why it was not supervised."""


class Intercepted(NamedTuple):
    """Rewritten opens of one file by one program of one test."""

    test: str
    program: str | bytes
    path: str | bytes | None
    opens: int
    failed: int


class Sum(NamedTuple):
    """All that came of a test session."""

    tests: int
    processes: int
    obstacles: Counter[str]
    seen: int
    cleared: int
    lost: int
    blind_spots: int
    running: int
    """Sessions that were not over."""
    troubles: list[str]
    intercepted: list[Intercepted]
    """The most frequent first."""


class TestTraces:
    """A folder of traces, and a list of what they are about, which several processes add to.

    Args:
        folder: made if missing; of a name that nobody can guess.
    """

    __test__ = False  # for pytest, which collects classes of this name

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            self.folder.chmod(0o1733)  # a test may start a process as somebody else
        self._list = self.folder / "started.jsonl"

    def new(self) -> str:
        """Return the name of a trace for another process."""
        return str(self.folder / f"{secrets.token_hex(8)}.db")

    def note(self, test: str, trace: str = "", pid: int = 0, obstacle: str = "") -> None:
        """Add a process to the list; arguments as the members of `Started`."""
        line = json.dumps(Started(test, trace, pid, obstacle)) + "\n"
        with open(self._list, "ab", buffering=0) as stream:  # one write, so that lines stay whole
            stream.write(line.encode())

    def started(self) -> list[Started]:
        """Return all processes, in the order they were started.

        Raises:
            FlagshimError: a test has damaged the list.
        """
        try:
            with open(self._list, encoding="utf-8") as stream:
                return [Started(*json.loads(line)) for line in stream]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError):
            what = "damaged, by a test or a full disk"
            raise FlagshimError(f"{self._list}: {what}", "run the tests again") from None

    def merge(self, target: Path | None) -> Sum:
        """Make one trace of all, each session with the name of its test.

        Args:
            target: where to keep it; None: nowhere.

        Raises:
            FlagshimError: it cannot be written, or nobody knows any more what there is.
        """
        started = self.started()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while any(map(_is_changing, started)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        served = [each for each in started if each.trace and os.path.exists(each.trace)]
        troubles = []
        target = target or self.folder / "all.db"
        with Merging(target) as merging:
            for each in served:
                try:
                    merging.add(Path(each.trace), {_TEST: each.test})
                except FlagshimError as error:
                    troubles.append(str(error))
        with TraceReader(target) as reader:
            return _sum(reader, started, troubles)

    def remove(self) -> None:
        """Remove the folder, and what helpers that are about to end make in it meanwhile."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        shutil.rmtree(self.folder, ignore_errors=True)
        while self.folder.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            shutil.rmtree(self.folder, ignore_errors=True)


def _is_changing(started: Started) -> bool:
    """Tell whether a trace will be there, or be finished, in a moment.

    The process is gone and its helper is not, or it has not become the command yet.
    """
    if not started.trace:
        return False
    try:
        with TraceReader(started.trace) as reader:
            sessions = reader.sessions()
    except FlagshimError:
        sessions = []  # not there, or it has just been made; what else is wrong a merge says
    if not sessions:
        return not has_ended(started.pid)
    over = all(session.ended_ns is not None for session in sessions)
    return not over and has_ended(started.pid)


def _sum(reader: TraceReader, started: list[Started], troubles: list[str]) -> Sum:
    tests = {each.test for each in started}
    labels = reader.labels()
    sessions = {
        session.id: session
        for session in reader.sessions()
        if labels.get(session.id, {}).get(_TEST) in tests
    }
    served = [each for each in started if each.trace]
    counts: Counter[tuple[str, str | bytes, str | bytes | None]] = Counter()
    failed: Counter[tuple[str, str | bytes, str | bytes | None]] = Counter()
    for traced in reader.events():
        event = traced.event
        if event.decision == Decision.CLEARED and traced.session_id in sessions:
            test = labels[traced.session_id][_TEST]
            key = (test, event.program, event.resolved or event.path)
            counts[key] += 1
            failed[key] += event.errno is not None
    spots = reader.blind_spots()
    return Sum(
        tests=len({each.test for each in served}),
        processes=len(served),
        obstacles=Counter(each.obstacle for each in started if each.obstacle),
        seen=sum(session.seen for session in sessions.values()),
        cleared=sum(counts.values()),
        lost=sum(session.lost for session in sessions.values()),
        blind_spots=sum(spot.count for id_ in sessions for spot in spots.get(id_, ())),
        running=sum(session.ended_ns is None for session in sessions.values()),
        troubles=troubles,
        intercepted=[Intercepted(*key, n, failed[key]) for key, n in counts.most_common()],
    )
