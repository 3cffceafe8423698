"""A bounded trace: what is dropped goes on counting."""

import random
import sqlite3
import time
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.trace.bounds import EVERYTHING, Bound, parse_bound
from flagshim.trace.events import OpenEvent
from flagshim.trace.reader import TraceReader
from flagshim.trace.store import Batch, TraceFile, begin_session
from flagshim.trace.writer import TraceWriter
from tests.support import rows
from tests.unit.test_writer import EVENT, SESSION
from tests.unit.tracebuilder import small

SECOND = 10**9
PATHS = ("/nix/a", "/nix/b\n", b"/nix/\xff", "", None)


def some_events(count: int) -> list[OpenEvent]:
    dice = random.Random(count)
    return [
        EVENT._replace(
            time_ns=number,
            program=dice.choice(["qemu", b"q\xff"]),
            path=dice.choice(PATHS),
            resolved=dice.choice(PATHS),
            decision=dice.choice(["cleared", "kept"]),
            errno=dice.choice([None, "EPERM", "ENOENT"]),
        )
        for number in range(count)
    ]


def record(trace: Path, bound: Bound, events: list[OpenEvent]) -> TraceWriter:
    writer = TraceWriter(begin_session(trace, SESSION), print, bound)
    for event in events:
        writer.record(event)
        writer.flush_if_due()
    writer.close(0)
    return writer


def sums(trace: Path) -> tuple:
    with TraceReader(trace) as reader:
        return reader.by_session(), list(reader.by_path()), list(reader.by_program())


def test_newest_stay_and_the_sums_are_those_of_all(tmp_path: Path) -> None:
    bounded, whole = tmp_path / "bounded.db", tmp_path / "whole.db"
    events = some_events(30_011)
    for trace, bound in ((bounded, Bound(events=503)), (whole, EVERYTHING)):
        record(trace, bound, events[:17_011])
        writer = record(trace, bound, events[17_011:])
        assert (writer.seen, writer.lost) == (13_000, 0)
    assert rows(bounded, "SELECT time_ns FROM event ORDER BY id") == [
        (number,) for number in range(30_011 - 503, 30_011)
    ]
    assert sums(bounded) == sums(whole)
    assert rows(bounded, "SELECT seen FROM session") == [(17_011,), (13_000,)]
    assert rows(bounded, "SELECT sum(opens) FROM dropped") == [(30_011 - 503,)]


def test_never_far_beyond_while_it_is_written(tmp_path: Path) -> None:
    session = begin_session(tmp_path / "t.db", SESSION)
    trace = TraceFile(session.trace)
    sizes, counts = [], []
    for number in range(101):
        trace.append(session.id, Batch([tuple(EVENT._replace(time_ns=number))] * 251))
        trace.shorten(Bound(events=503), slack=1009)
        counts.append(rows(session.trace, "SELECT count(*) FROM event")[0][0])
        sizes.append(session.trace.stat().st_size)
    trace.close()
    assert 503 + 1009 - 251 < max(counts) <= 503 + 1009
    assert min(counts[7:]) >= 503
    assert sizes[-1] < 2 * sizes[7], "the space is used again"


def test_by_age(tmp_path: Path) -> None:
    trace = tmp_path / "t.db"
    now = time.time_ns()
    old = [EVENT._replace(time_ns=now - 7200 * SECOND + n) for n in range(101)]
    new = [EVENT._replace(time_ns=now - 1800 * SECOND + n) for n in range(103)]
    record(trace, Bound(seconds=3600), old + new)
    assert rows(trace, "SELECT count(*) FROM event") == [(103,)]
    assert rows(trace, "SELECT opens, first_ns, last_ns FROM dropped") == [
        (101, old[0].time_ns, old[-1].time_ns)
    ]
    record(trace, Bound(seconds=60), [])
    assert rows(trace, "SELECT count(*) FROM event") == [(0,)]
    with TraceReader(trace) as reader:
        assert reader.dropped() == {1: 204}
        assert [tally.tally.opens for tally in reader.by_path()] == [204]
        assert not list(reader.by_path(since_ns=now)), "they were before"


def test_an_age_beyond_all_ages(tmp_path: Path) -> None:
    trace = tmp_path / "t.db"
    writer = record(trace, Bound(seconds=99_999_999_999 * 86_400), some_events(7))
    assert (writer.lost, writer.trouble) == (0, "")
    assert rows(trace, "SELECT count(*) FROM event") == [(7,)]


def test_trace_of_before_is_read_and_written(tmp_path: Path) -> None:
    trace = small(tmp_path / "t.db")
    before = sums(trace)
    database = sqlite3.connect(trace)
    database.executescript("DROP TABLE dropped; DROP TABLE trouble;")
    database.close()
    assert sums(trace) == before
    record(trace, Bound(events=1), some_events(3))
    assert rows(trace, "SELECT count(*) FROM event") == [(1,)]
    assert rows(trace, "SELECT sum(opens) FROM dropped") == [(6,)]


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("1", Bound(events=1)),
        ("1000000", Bound(events=1_000_000)),
        ("30d", Bound(seconds=30 * 86_400)),
        ("90s", Bound(seconds=90)),
    ],
)
def test_what_it_means(text: str, bound: Bound) -> None:
    assert parse_bound(text) == bound


@pytest.mark.parametrize("text", ["", "0", "0d", "-1", "1.5", "1e6", "30 d", "d", "30w", "9" * 13])
def test_what_it_cannot_mean(text: str) -> None:
    with pytest.raises(FlagshimError, match="--keep") as error:
        parse_bound(text)
    assert "--keep 30d" in error.value.hint
