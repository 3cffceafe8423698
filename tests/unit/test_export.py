"""Traces handed on: Parquet read by DuckDB, OTLP taken by an endpoint that speaks protobuf."""

import ast
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from tests.support import HANGS, REPOSITORY, flagshim_command
from tests.unit.collector import collecting
from tests.unit.tracebuilder import FAILED, KEPT, OPEN, START, STILL_REFUSED, Trace, small

BAD = b"/store/\xff"
TEXT = (REPOSITORY / "docs" / "fleet.md").read_text()


def export(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*flagshim_command(), "export", *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=HANGS,
        env={**os.environ, "OTEL_EXPORTER_OTLP_TIMEOUT": "10", **environment},
    )  # fmt: skip


def rich(path: Path, host: str = "builder", opens: int = 1) -> Path:
    """A trace with a row of every kind."""
    trace = Trace(path)
    trace.session(host=host, seen=opens + 3, lost=1, exit_status=3)
    trace.session(host=host, started_ns=START + 7)
    trace.event(time_ns=START + 1, path=BAD, resolved=b"/\xfd", **STILL_REFUSED)
    trace.event(time_ns=START + 2, program=b"\xfe", owner_uid=None, fsuid=None, **FAILED)
    trace.events(OPEN._replace(time_ns=START + 11 + n, path=f"hello{n}") for n in range(opens))
    trace.blind_spot("io_uring", "qemu", 5)
    trace.db.execute("INSERT INTO label VALUES (1, 'cicd.pipeline.name', 'nightly')")
    trace.db.execute("INSERT INTO trouble VALUES (1, ?, 'disk full')", (START + 3,))
    trace.db.execute(
        "INSERT INTO dropped VALUES"
        " (1, 'qemu', 'noatime', '/nix/store/old', 13, 11, 2, 2, 1, 1, 0, ?, ?)",
        (START - 5, START - 4),
    )
    return trace.close()


def ask(query: str) -> list[tuple]:
    """Ask DuckDB, in a process of its own: at its end it complains of itself."""
    code = "import duckdb, sys; print(duckdb.connect().execute(sys.argv[1]).fetchall())"
    command = [sys.executable, "-c", code, f"SET TimeZone = 'UTC'; {query}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return ast.literal_eval(result.stdout)


# --- Parquet ------------------------------------------------------------------------------------


def test_fleet_in_duckdb(tmp_path: Path) -> None:
    """Traces merged, and exported one by one: DuckDB finds the same in both."""
    hosts = [rich(tmp_path / f"{host}.db", host, n) for host, n in (("a", 3), ("b", 5), ("c", 7))]
    merge = [*flagshim_command(), "merge", "-o", str(tmp_path / "all.db"), *map(str, hosts)]
    subprocess.run(merge, cwd=REPOSITORY, check=True, capture_output=True)
    for trace in [*hosts, tmp_path / "all.db"]:
        result = export(trace, "--parquet", trace.with_suffix(".parquet"))
        assert result.returncode == 0, result.stderr
    query = """
        SELECT host, labels['cicd.pipeline.name'], count(*) FILTER (decision = 'cleared'),
               count(*) FILTER (decision = 'cleared' AND errno IS NOT NULL),
               sum(lost), sum(count) FILTER (kind = 'dropped')
        FROM read_parquet('{}') GROUP BY ALL ORDER BY ALL"""
    merged = ask(query.format(tmp_path / "all.parquet"))
    apart = ask(query.format(tmp_path / "[abc].parquet"))
    assert merged == apart
    assert [row for row in merged if row[1]] == [
        ("a", "nightly", 4, 1, 1, 13),
        ("b", "nightly", 6, 1, 1, 13),
        ("c", "nightly", 8, 1, 1, 13),
    ]
    query = f"SELECT count(DISTINCT session_uid) FROM '{tmp_path}/*.parquet'"
    assert ask(query) == [(6,)]  # the same in the merged trace


def test_every_column_is_described(tmp_path: Path) -> None:
    export(rich(tmp_path / "t.db"), "--parquet", tmp_path / "t.parquet")
    parquet = f"'{tmp_path}/t.parquet'"
    columns = [column for column, *_ in ask(f"SELECT column_name FROM (DESCRIBE {parquet})")]
    rows = ask(f"SELECT * REPLACE (time::VARCHAR AS time) FROM {parquet}")
    section = TEXT.split("## Parquet")[1].split("\n## ")[0]
    cells = " ".join(re.findall(r"^\| (`[^|]+) \|", section, re.M))
    assert set(re.findall(r"`(\w+)`", cells)) == set(columns)
    assert all(any(cell is not None for cell in column) for column in zip(*rows, strict=True))


def test_what_is_in_a_row(tmp_path: Path) -> None:
    export(rich(tmp_path / "t.db"), "--parquet", tmp_path / "t.parquet")
    columns = "kind, time_ns, path, path_bytes, program, program_bytes, flags_cleared, errno"
    query = f"SELECT {columns} FROM '{tmp_path}/t.parquet' WHERE kind = 'open' ORDER BY time_ns"
    path, program = "/store/\\xff", "\\xfe"
    assert ask(query) == [
        ("open", START + 1, path, BAD, "qemu-system-x86_64", None, ["O_NOATIME"], "EPERM"),
        ("open", START + 2, "hello", None, program, b"\xfe", [], "ENOENT"),
        ("open", START + 11, "hello0", None, "qemu-system-x86_64", None, ["O_NOATIME"], None),
    ]
    query = (
        f"SELECT time::VARCHAR, command, rules FROM '{tmp_path}/t.parquet' WHERE kind = 'session'"
    )
    (time_, command, rules), _ = ask(query)
    assert time_ == "2023-11-14 22:13:20+00"
    assert command == ["qemu-system-x86_64", "-m", "2 G"]
    assert json.loads(rules)[0]["name"] == "noatime"


def test_many_events_in_little_memory(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.events(OPEN._replace(time_ns=START + n, **KEPT) for n in range(100_003))
    trace.close()
    limited = 'ulimit -v 2000000; exec "$@"'
    command = [*flagshim_command(), "export", "--parquet", "t.parquet", str(tmp_path / "t.db")]
    result = subprocess.run(
        ["sh", "-c", limited, "sh", *command], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.stderr == "flagshim: 100004 rows in t.parquet\n"
    query = f"SELECT count(*), count(DISTINCT time_ns) FROM '{tmp_path}/t.parquet'"
    assert ask(query)[0] == (100_004, 100_003)


@pytest.mark.parametrize("existing", ["a trace", "hello"])
def test_nothing_but_parquet_is_replaced(tmp_path: Path, existing: str) -> None:
    target = tmp_path / "target"
    target.write_text(existing)
    result = export(small(tmp_path / "t.db"), "--parquet", target)
    assert (result.returncode, target.read_text()) == (125, existing)
    assert "exists, and is no Parquet file" in result.stderr


def test_parquet_is_replaced_as_a_whole(tmp_path: Path) -> None:
    trace, target = small(tmp_path / "t.db"), tmp_path / "t.parquet"
    assert export(trace, "--parquet", target).returncode == 0
    before = target.read_bytes()
    with open(trace, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100_000)
    assert export(trace, "--parquet", target).returncode == 125
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.db", "t.parquet"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = export(small(tmp_path / "t.db"), "--parquet", tmp_path / "no" / "t.parquet")
    assert result.returncode == 125
    assert result.stderr.endswith("No such file or directory; write it to another folder\n")


# --- OTLP ---------------------------------------------------------------------------------------


def test_every_record_arrives(tmp_path: Path) -> None:
    trace = rich(tmp_path / "t.db", opens=1009)
    before = trace.read_bytes()
    with collecting() as collector:
        result = export(trace, "--otlp", collector.url)
        assert result.stderr == f"flagshim: 1016 records sent to {collector.url}\n"
        records = collector.records()
    assert trace.read_bytes() == before
    assert Counter(record.event_name for _, _, record in records) == {
        "flagshim.open": 1011,
        "flagshim.session": 2,
        "flagshim.blind_spot": 1,
        "flagshim.dropped": 1,
        "flagshim.trouble": 1,
    }


def test_what_is_in_a_record(tmp_path: Path) -> None:
    with collecting() as collector:
        export(rich(tmp_path / "t.db"), "--otlp", f"{collector.url}/v1/logs")
        records = collector.records()
    resource, _, _ = records[0]
    assert (
        resource.items()
        >= {
            "service.name": "flagshim",
            "host.name": "builder",
            "host.arch": "amd64",
            "os.version": "6.1.0",
            "process.command_args": ["qemu-system-x86_64", "-m", "2 G"],
            "process.real_user.id": 1000,
            "cicd.pipeline.name": "nightly",
        }.items()
    )
    assert len({resource["service.instance.id"] for resource, _, _ in records}) == 2
    refused, failed, rescued = (
        (attributes, record) for _, attributes, record in records
        if record.event_name == "flagshim.open"
    )  # fmt: skip
    assert rescued[0] == {
        "process.executable.name": "qemu-system-x86_64", "process.pid": 4242, "thread.id": 4243,
        "file.path": "/nix/store/hello", "flagshim.path": "hello0",
        "flagshim.resolved": "/nix/store/hello", "flagshim.syscall": "openat",
        "flagshim.abi": "x86_64", "flagshim.access": "r", "flagshim.decision": "cleared",
        "flagshim.flags_before": 0o3000000, "flagshim.flags_after": 0o2000000,
        "flagshim.flags_cleared": ["O_NOATIME"], "flagshim.rule": "noatime",
        "flagshim.reason": "refused by the kernel", "flagshim.owner_uid": 0,
        "flagshim.fsuid": 1000, "flagshim.fd": 9, "flagshim.tries": 2,
    }  # fmt: skip
    assert (rescued[1].severity_text, rescued[1].time_unix_nano) == ("INFO", START + 11)
    assert rescued[1].body.string_value == (
        "openat: O_NOATIME cleared, refused by the kernel: /nix/store/hello"
    )
    assert (refused[1].severity_text, refused[0]["error.type"]) == ("WARN", "EPERM")
    assert refused[0]["flagshim.path.bytes"] == BAD
    assert failed[0]["process.executable.name"] == "\\xfe"


def test_the_endpoint_may_want_headers_and_compression(tmp_path: Path) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20x",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=staging",
    }
    with collecting() as collector:
        result = export(small(tmp_path / "t.db"), "--otlp", collector.url, **environment)
        assert result.returncode == 0, result.stderr
        assert collector.headers[0]["authorization"] == "Basic x"
        resource, _, _ = collector.records()[0]
    assert resource["deployment.environment.name"] == "staging"


def test_tried_again(tmp_path: Path) -> None:
    with collecting() as collector:
        collector.answers = [503]
        result = export(small(tmp_path / "t.db"), "--otlp", collector.url)
        assert result.returncode == 0, result.stderr
        assert (collector.tries, len(collector.records())) == (2, 5)


def test_passwords_are_nobodys_business() -> None:
    from flagshim.exports.otlp import shown

    assert shown("http://u:s@cret@127.0.0.1:1/v1") == "http://127.0.0.1:1/v1"
    assert shown("http://127.0.0.1:1/v1") == "http://127.0.0.1:1/v1"


def test_down(tmp_path: Path) -> None:
    trace = small(tmp_path / "t.db")
    before = trace.read_bytes()
    with collecting() as collector:
        url = collector.url
    began = time.monotonic()
    result = export(trace, "--otlp", url, OTEL_EXPORTER_OTLP_TIMEOUT="2")
    assert time.monotonic() - began < 20
    assert result.returncode == 125
    assert result.stderr == (
        f"flagshim: {url}/v1/logs: Connection refused (0 records were taken); "
        "the trace still has them: run the same command again\n"
    )
    assert trace.read_bytes() == before


def test_slow(tmp_path: Path) -> None:
    over = threading.Event()
    with collecting() as collector:
        collector.answers = [over] * 7
        began = time.monotonic()
        result = export(
            small(tmp_path / "t.db"), "--otlp", collector.url, OTEL_EXPORTER_OTLP_TIMEOUT="1"
        )
        assert time.monotonic() - began < 20
        over.set()
    assert result.returncode == 125
    assert result.stderr.count("\n") == 1
    assert "timed out" in result.stderr


def test_down_in_the_middle(tmp_path: Path) -> None:
    with collecting() as collector:
        collector.answers = [200, 400]
        result = export(rich(tmp_path / "t.db", opens=1009), "--otlp", collector.url)
        assert len(collector.records()) == 503
    assert "400 Bad Request (503 records were taken)" in result.stderr


def test_a_part_refused(tmp_path: Path) -> None:
    reply = ExportLogsServiceResponse()
    reply.partial_success.rejected_log_records = 2
    reply.partial_success.error_message = "quota\x1b[31m"
    with collecting() as collector:
        collector.answers = [reply]
        result = export(small(tmp_path / "t.db"), "--otlp", collector.url)
    assert result.returncode == 125
    assert "quota\\x1b[31m (3 records were taken)" in result.stderr


@pytest.mark.parametrize("url", ["collector:4318", "ftp://collector", "http://", "http://h:x"])
def test_no_url(tmp_path: Path, url: str) -> None:
    result = export(small(tmp_path / "t.db"), "--otlp", url)
    assert "not the URL of an OTLP endpoint; as in --otlp http" in result.stderr


# --- both ---------------------------------------------------------------------------------------


def test_nowhere(tmp_path: Path) -> None:
    result = export(small(tmp_path / "t.db"))
    assert result.stderr == "flagshim: nowhere to export to; give --parquet FILE or --otlp URL\n"


@pytest.mark.parametrize(
    ("missing", "argument"), [("pyarrow", "--parquet=x"), ("opentelemetry", "--otlp=http://h")]
)
def test_an_extra_that_is_not_installed(tmp_path: Path, missing: str, argument: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from flagshim.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "export", argument, str(small(tmp_path / "t.db"))],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert result.returncode == 125
    assert result.stderr.count("\n") == 1
    name = argument.removeprefix("--").partition("=")[0]
    assert result.stderr.endswith(f"; pip install 'flagshim[{name}]'\n")


def test_libraries_of_other_licences_stay_apart(tmp_path: Path) -> None:
    """Those of the extras are under Apache-2.0, which python-ptrace's GPL-2.0-only is not for."""
    code = (
        "import sys; from flagshim.cli import export; import flagshim.exports.otlp,"
        "flagshim.exports.parquet; assert 'ptrace' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
