import base64
import csv
import io
import json
import os
import re
import shlex
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.trace.events import OpenEvent
from tests.unit.reportrunner import process, run, usage_error
from tests.unit.tracebuilder import (
    FAILED,
    KEPT,
    OPEN,
    SECOND,
    START,
    STILL_REFUSED,
    Trace,
    small,
)

NASTY = [
    "new\nline",
    "\x1b]0;owned\x07\x1b[2J",
    "\u202egnp.exe",
    "back\\slash",
    'quo"te, comma',
    " spaces ",
    "\x9b31m",
    b"latin-1 \xe9\x9b",
    "=1+1",
    "007",
    "1e5",
    "cr\rlf",
    None,
]


@pytest.fixture(autouse=True)
def utc_plus_5_30(monkeypatch):
    monkeypatch.setenv("TZ", "XXX-5:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def nasty(path) -> Path:
    """A trace with every nasty name as path and program."""
    trace = Trace(path)
    arguments = [os.fsdecode(n) if isinstance(n, bytes) else n for n in NASTY if n is not None]
    trace.session(command=json.dumps(arguments), cwd=b"/\xff")
    for number, name in enumerate(NASTY):
        program = "none" if name is None else name
        trace.event(time_ns=START + number, path=name, resolved=name, program=program)
    trace.blind_spot("io_uring", "\x1b[2J", 2)
    return trace.close()


# --- summary ----------------------------------------------------------------------------


def test_summary(tmp_path):
    assert run(small(tmp_path / "t.db")) == (
        "Session 1, 2023-11-15 03:43:20 +0530\n"
        "  command qemu-system-x86_64 -m '2 G'\n"
        "  exit    0, after 5.000 s\n"
        "  opens   5 seen: 2 cleared, 2 kept, 1 lost\n"
        "          1 still refused after clearing, 1 failed otherwise\n"
        "\n"
        "Paths opened most\n"
        "OPENS  CLEARED  REFUSED  KEPT  FAILED  PATH\n"
        "    2        1        0     1       0  /nix/store/hello\n"
        "    1        1        1     0       0  /etc/frozen\n"
        "    1        0        0     1       1  gone\n"
        "\n"
        "Programs that opened most\n"
        "OPENS  CLEARED  REFUSED  KEPT  FAILED  PROGRAM\n"
        "    3        2        1     1       0  qemu-system-x86_64\n"
        "    1        0        0     1       1  bash\n"
    )


def test_summary_of_a_session_without_end(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session(ended_ns=None, exit_status=None, seen=0)
    trace.event()
    trace.session(ended_ns=None, exit_status=None, seen=7, lost=2)
    trace.session(exit_status=-9)
    trace.session(exit_status=None)
    trace.blind_spot("io_uring", "qemu", 3, session=2)
    trace.blind_spot("no trace", "sudo", 2, session=2)
    text = run(trace.close())
    first, second, third, fourth = text.split("\n\n")[0].split("Session")[1:]
    assert "exit    still running, or its supervisor was killed" in first
    assert "1 seen: 1 cleared, 0 kept, 0 lost" in first
    assert "7 seen: 0 cleared, 0 kept, 2 lost" in second
    assert "5 not in the trace yet" in second
    assert "unseen  io_uring: qemu, 3x\n          no trace: sudo, 2x\n" in second
    assert "exit    killed by SIGKILL, after" in third
    assert "exit    not known, after" in fourth
    assert "unseen" not in first + third + fourth


def test_summary_limit_and_since_choose_sessions(tmp_path):
    trace = Trace(tmp_path / "t.db")
    for number in range(23):
        started = START + number * 60 * SECOND
        session = trace.session(started_ns=started, ended_ns=started + SECOND)
        trace.event(session, time_ns=started, resolved=f"/{number}")
    trace.close()

    def numbers(*arguments):
        return [int(n) for n in re.findall(r"^Session (\d+),", run(trace.path, *arguments), re.M)]

    assert numbers() == list(range(4, 24))
    assert "3 earlier sessions; --limit N shows more." in run(trace.path)
    assert numbers("--limit", "2") == [22, 23]
    assert numbers("--limit", "23") == list(range(1, 24))
    assert "earlier sessions" not in run(trace.path, "--limit", "23")
    assert numbers("--since", "2023-11-15T04:04:20.5") == [22, 23]
    text = run(trace.path, "--since", "2023-11-15T04:04:20.5")
    assert "Paths opened most since 2023-11-15 04:04:20 +0530" in text
    assert re.findall(r"  /(\d+)$", text, re.M) == ["22"]
    for view in ("summary", "paths"):
        text = run(trace.path, "--view", view, "--since=2023-11-15T04:04:20.5", "--format=json")
        assert [path["path"] for path in json.loads(text)["paths"]] == ["/22"]
    assert [s["session"] for s in json.loads(run(trace.path, "--format=json"))["sessions"]] == [
        *range(1, 24)
    ]


def test_summary_names_the_most_frequent_blind_spots(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    for number in range(1, 8):
        trace.blind_spot("io_uring", f"p{number}", number)
    text = run(trace.close())
    assert re.findall(r"io_uring: (p\d), \dx", text) == ["p7", "p6", "p5", "p4", "p3"]
    assert "          and 2 more; --format json has them all\n" in text


def test_trace_without_anything(tmp_path):
    path = Trace(tmp_path / "t.db").close()
    assert run(path) == "No session.\n"
    for view in ("events", "paths", "programs"):
        assert run(path, "--view", view) == "No open.\n"
        assert json.loads(run(path, "--view", view, "--format", "json"))[view] == []
        assert len(list(csv.reader(io.StringIO(run(path, "--view", view, "--format=csv"))))) == 1
    assert json.loads(run(path, "--format", "json"))["sessions"] == []


def test_summary_of_many_events(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session(seen=100_003)
    kept = OPEN._replace(**KEPT)
    trace.events(
        (kept if n % 3 else OPEN)._replace(time_ns=START + n, resolved=f"/store/{n % 1009}")
        for n in range(100_003)
    )
    text = run(trace.close())
    assert "100003 seen: 33335 cleared, 66668 kept, 0 lost" in text
    assert re.search(r"^ +100  .*  /store/0$", text, re.M)
    assert re.search(r"^100003 .*  qemu-system-x86_64$", text, re.M)


# --- names chosen by a guest ------------------------------------------------------------


@pytest.mark.parametrize("view", ["summary", "events", "paths", "programs"])
def test_tables_hold_nothing_a_terminal_would_obey(tmp_path, view):
    text = run(nasty(tmp_path / "t.db"), "--view", view, "--limit", "99")
    assert text.replace("\n", "").isprintable()
    if view != "summary":
        expected = [r"new\nline", r"\x1b]0;owned\x07\x1b[2J", r"\u202egnp.exe", r"back\\slash",
                    r"\x20spaces\x20", r"\u009b31m", r"latin-1 \xe9\x9b", "007", "1e5"]  # fmt: skip
        for name in expected:
            assert re.search(rf" {re.escape(name)}( |$)", text, re.M), name
        assert len(text.splitlines()) == len(NASTY) + (2 if view == "events" else 1)


def test_json_has_every_name_exactly(tmp_path):
    def exact(name):
        return base64.b64decode(name["bytes"]) if isinstance(name, dict) else name

    path = nasty(tmp_path / "t.db")
    text = run(path, "--view", "events", "--format", "json")
    assert text.isascii()
    document = json.loads(text)
    assert {"version": 1, "view": "events", "trace": str(path)}.items() <= document.items()
    assert [exact(event["path"]) for event in document["events"]] == NASTY
    assert [exact(event["resolved"]) for event in document["events"]] == NASTY
    assert [exact(event["program"]) for event in document["events"]] == [*NASTY[:-1], "none"]
    for view, key in (("paths", "path"), ("programs", "program")):
        rows = json.loads(run(path, "--view", view, "--format", "json"))[view]
        names = {"none" if name is None and view == "programs" else name for name in NASTY}
        assert {exact(row[key]) for row in rows} == names
    (session,) = json.loads(run(path, "--format", "json"))["sessions"]
    assert [exact(argument) for argument in session["command"]] == NASTY[:-1]
    assert exact(session["cwd"]) == b"/\xff"
    assert session["blind_spots"] == [{"kind": "io_uring", "program": "\x1b[2J", "count": 2}]


def test_csv_has_names_exactly_where_they_are_text(tmp_path):
    path = nasty(tmp_path / "t.db")
    expected = [r"latin-1 \xe9\x9b" if isinstance(n, bytes) else n or "" for n in NASTY]
    for view, column in (("events", "path"), ("events", "resolved"), ("paths", "path")):
        text = run(path, "--view", view, "--format", "csv")
        names = [row[column] for row in csv.DictReader(io.StringIO(text, newline=""))]
        assert sorted(names) == sorted(expected)
    text = run(path, "--format", "csv")
    assert text.count("\r\n") == 2
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert shlex.split(row["command"]) == shlex.split(shlex.join(expected[:-1]))
    assert (row["cwd"], row["blind_spots"]) == (r"/\xff", "2")


# --- JSON and CSV -----------------------------------------------------------------------


def test_json_event_has_all_there_is(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    event = trace.event(time_ns=START + 7)
    (found,) = json.loads(run(trace.close(), "--view", "events", "--format", "json"))["events"]
    assert {field: found[field] for field in OpenEvent._fields} == event._asdict()
    assert found["session"] == 1
    assert found["time"] == "2023-11-14T22:13:20.000000007Z"
    assert found["flag_names_before"] == "O_RDONLY|O_NOATIME|O_CLOEXEC" or set(
        found["flag_names_before"].split("|")
    ) == {"O_RDONLY", "O_NOATIME", "O_CLOEXEC"}
    assert found["flag_names_after"] == "O_RDONLY|O_CLOEXEC"
    assert found["flags_cleared"] == ["O_NOATIME"]


def test_json_summary(tmp_path):
    document = json.loads(run(small(tmp_path / "t.db"), "--format", "json"))
    (session,) = document["sessions"]
    counts = ("seen", "cleared", "still_refused", "kept", "failed", "lost", "exit_status")
    assert [session[count] for count in counts] == [5, 2, 1, 2, 1, 1, 0]
    assert session["started"] == "2023-11-14T22:13:20.000000000Z"
    assert session["ended_ns"] - session["started_ns"] == 5 * SECOND
    assert [p["path"] for p in document["paths"]] == ["/nix/store/hello", "/etc/frozen", "gone"]
    assert document["programs"][0] == {
        "program": "qemu-system-x86_64",
        "opens": 3,
        "cleared": 2,
        "still_refused": 1,
        "kept": 1,
        "failed": 0,
        "first_ns": START,
        "last_ns": START + 2,
        "first": "2023-11-14T22:13:20.000000000Z",
        "last": "2023-11-14T22:13:20.000000002Z",
    }


def test_csv_event_and_session(tmp_path):
    path = small(tmp_path / "t.db")
    rows = list(csv.DictReader(io.StringIO(run(path, "--view", "events", "--format", "csv"))))
    assert len(rows) == 4
    expected = {k: "" if v is None else str(v) for k, v in OPEN._asdict().items()}
    assert expected.items() <= rows[0].items()
    assert rows[0]["flags_cleared"] == "O_NOATIME"
    (session,) = csv.DictReader(io.StringIO(run(path, "--format", "csv")))
    assert session["command"] == "qemu-system-x86_64 -m '2 G'"
    assert [session[c] for c in ("seen", "cleared", "kept", "lost")] == ["5", "2", "2", "1"]


def test_machine_formats_are_utf_8_wherever(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event(resolved="/é漢")
    path = trace.close()
    for encoding in ("ascii", "latin-1"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        for format_, shown in (
            ("csv", "/é漢".encode()),
            ("table", b"\\u6f22"),
            ("json", b"\\u6f22"),
        ):
            arguments = (path, "--view", "paths", "--format", format_)
            with process(*arguments, stdout=subprocess.PIPE, env=environment) as command:
                assert shown in command.stdout.read()
            assert command.returncode == 0


# --- table of events --------------------------------------------------------------------


def test_events(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event()
    trace.event(time_ns=START + 1_000_000, **KEPT, tries=1)
    trace.event(time_ns=START + 2_000_000, **STILL_REFUSED)
    trace.event(time_ns=START + 3_000_000, fd=None, path="asked", resolved=None)
    trace.event(time_ns=START + 86400 * SECOND, program="bash", pid=7, **FAILED, tries=1)
    assert run(trace.close(), "--view", "events").replace(" \n", "\n").splitlines() == [
        "TIME             PID PROGRAM            SYSCALL FLAGS      RESULT    PATH",
        "2023-11-15",
        "03:43:20.000    4242 qemu-system-x86_64 openat  -O_NOATIME 9      2x /nix/store/hello",
        "03:43:20.001    4242 qemu-system-x86_64 openat  O_NOATIME  9         /nix/store/hello",
        "03:43:20.002    4242 qemu-system-x86_64 openat  -O_NOATIME EPERM  2x /nix/store/hello",
        "03:43:20.003    4242 qemu-system-x86_64 openat  -O_NOATIME ?      2x asked",
        "2023-11-16",
        "03:43:20.000       7 bash               openat  O_NOATIME  ENOENT    /nix/store/hello",
    ]


def test_events_limit_and_since(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.events(OPEN._replace(time_ns=START + n * SECOND, resolved=f"/{n}") for n in range(23))
    trace.close()

    def paths(*arguments):
        return re.findall(r" /(\d+)$", run(trace.path, "--view", "events", *arguments), re.M)

    assert paths() == [str(n) for n in range(23)]
    assert paths("--limit", "3") == ["20", "21", "22"]
    assert paths("--limit", str(2**63)) == paths()
    assert paths("--since", "2023-11-15T03:43:41") == ["21", "22"]
    assert paths("--since", "2023-11-14T22:13:41Z", "--limit", "1") == ["22"]
    assert paths("--since", "2023-11-16") == []
    assert paths("--since", "2023-11-15") == [str(n) for n in range(23)]


def test_since_a_while_ago(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    ages = {"a": 50, "b": 30 * 60, "c": 5 * 3600, "d": 4 * 86400}
    for name, age in ages.items():
        trace.event(time_ns=time.time_ns() - age * SECOND, resolved=name)
    trace.close()
    for since, names in (("90s", "a"), ("45m", "ab"), ("6h", "abc"), ("5d", "abcd"), ("1s", "")):
        rows = run(trace.path, "--view", "paths", "--format", "csv", "--since", since)
        assert sorted(row["path"] for row in csv.DictReader(io.StringIO(rows))) == list(names)
    for since in ("999999999999d", "0001-01-01T00:00Z", "9999-12-31T00:00Z"):
        run(trace.path, "--since", since)


@pytest.mark.parametrize(
    "when", ["", "5", "m", "-5m", "5 m", "5w", "1.5h", "yesterday", "٣m", "9999-12-31T23:59-23:00"]
)
def test_since_something_else(tmp_path, when):
    text = usage_error(small(tmp_path / "t.db"), "--since", when)
    assert f"{when!r} is neither a length of time back" in text
    assert "2024-11-21T08:30" in text


def test_since_is_exact(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    moment = datetime.fromisoformat("2023-11-14T22:13:20.123456+00:00")
    for offset in (-1, 0):
        trace.event(time_ns=START + 123_456_000 + offset, resolved=str(offset))
    text = run(trace.close(), "--view=events", "--format=json", "--since", moment.isoformat())
    assert [event["resolved"] for event in json.loads(text)["events"]] == ["0"]


# --- paths and programs -----------------------------------------------------------------


def test_paths_limit(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    for n in range(1, 24):
        trace.events([OPEN._replace(resolved=f"/{n}", program=f"p{n}")] * n)
    trace.close()
    for view in ("paths", "programs"):
        text = run(trace.path, "--view", view)
        assert len(text.splitlines()) == 1 + 20 + 1
        assert text.splitlines()[1].split()[0] == "23"
        assert text.endswith("3 more; --limit N shows more.\n")
        assert run(trace.path, "--view", view, "--limit", "22").endswith(
            "\n1 more; --limit N shows more.\n"
        )
        assert "more" not in run(trace.path, "--view", view, "--limit", "23")
        everything = json.loads(run(trace.path, "--view", view, "--format", "json"))[view]
        assert [row["opens"] for row in everything] == list(range(23, 0, -1))
        some = run(trace.path, "--view", view, "--format", "csv", "--limit", "2")
        assert [row["opens"] for row in csv.DictReader(io.StringIO(some))] == ["23", "22"]


def test_names_that_look_like_numbers(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event(resolved="007")
    trace.event(resolved="1e5")
    assert re.findall(r"  (\S+)$", run(trace.close(), "--view", "paths"), re.M) == [
        "PATH",
        "007",
        "1e5",
    ]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5"])
def test_limit_must_be_positive(tmp_path, limit):
    assert "--limit" in usage_error(small(tmp_path / "t.db"), "--limit", limit)


# --- which trace ------------------------------------------------------------------------


def test_latest_trace_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(FlagshimError, match="run `flagshim run -- CMD` first or name a TRACE"):
        run()
    (tmp_path / "flagshim").mkdir()
    for number, name in enumerate(("z.db", "a.db")):
        path = small(tmp_path / "flagshim" / name)
        os.utime(path, ns=(0, number))
    assert json.loads(run("--format", "json"))["trace"].endswith("/a.db")


def test_trace_called_anything(tmp_path):
    path = small(tmp_path / os.fsdecode(b"\xff?#%.db"))
    document = json.loads(run(path, "--format", "json"))
    assert base64.b64decode(document["trace"]["bytes"]) == os.fsencode(path)


def test_help():
    text = run("--help")
    assert "flagshim report boot.db --view paths --limit 50\n" in text
    assert "2024-11-21T08:30" in text
