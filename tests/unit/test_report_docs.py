"""docs/trace-format.md says what is so."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from flagshim.trace import schema
from flagshim.trace.events import Reason
from tests.unit.reportrunner import run
from tests.unit.tracebuilder import FAILED, STILL_REFUSED, Trace, small

TEXT = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.split(f"\n## {title}", 1)[1], maxsplit=1, flags=re.M)[0]


def test_application_id_and_version():
    assert f"{schema.APPLICATION_ID} (`{schema.APPLICATION_ID:#x}`" in TEXT
    assert f"| `user_version` | {schema.VERSION} |" in TEXT


TABLES = ["session", "event", "blind_spot", "dropped", "trouble", "label"]


@pytest.mark.parametrize("table", TABLES)
def test_every_column(tmp_path, table):
    trace = Trace(tmp_path / "t.db")
    columns = [row[1] for row in trace.db.execute(f"PRAGMA table_info({table})")]
    trace.close()
    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section(f"{table}: "), re.M)
    assert re.findall(r"`(\w+)`", " ".join(cells)) == columns


def test_queries(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session(lost=2)
    trace.session()
    trace.event(resolved="a\nb")
    trace.event(resolved="a\x1bb", **STILL_REFUSED)
    trace.event(program="bash", owner_uid=None, **FAILED)
    trace.blind_spot("io_uring", "qemu", 3)
    refused, owners, incomplete = (
        trace.db.execute(query).fetchall() for query in re.findall(r"```sql\n(.*?)```", TEXT, re.S)
    )
    trace.close()
    assert [row[1:] for row in refused] == [
        ("qemu-system-x86_64", "EPERM", 0, 1000, "a\x1bb"),
    ]
    assert owners == [("qemu-system-x86_64", 0, 2, 2, 1), ("bash", None, 1, 1, 0)]
    assert incomplete == [(1, 2, 0, "io_uring 3")]


@pytest.mark.parametrize("format_", ["json", "csv"])
@pytest.mark.parametrize("view", ["summary", "events", "paths", "programs"])
def test_every_member(tmp_path, view, format_):
    text = run(small(tmp_path / "t.db"), "--view", view, "--format", format_)
    if format_ == "json":
        key = "sessions" if view == "summary" else view
        members = set(json.loads(text)[key][0])
    else:
        members = set(next(csv.reader(io.StringIO(text))))
    described = set(re.findall(r"`(\w+)`", section("What `flagshim report` writes")))
    if view == "events":
        described |= set(re.findall(r"`(\w+)`", section("event: "))) - {"id", "session_id"}
    if view == "summary":
        described |= set(re.findall(r"`(\w+)`", section("session: "))) - {"id"}
    assert members <= described


def test_every_reason_to_leave_a_call_alone_is_explained() -> None:
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    missing = [r.value for r in Reason if "rescued" in r.value and f"| {r.value} |" not in text]
    assert missing == []
