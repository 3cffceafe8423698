"""The traces of a test session, as what made them goes on or ends just then."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagshim import testtraces
from flagshim.errors import FlagshimError
from flagshim.testtraces import TestTraces
from tests.unit.tracebuilder import Trace


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that goes on."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process


@pytest.fixture
def traces(tmp_path: Path) -> TestTraces:
    return TestTraces(tmp_path / "traces")


@pytest.mark.parametrize("begun", ["no file", "no table", "no session"])
def test_a_process_that_has_just_begun(
    traces: TestTraces, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch,
    begun: str,
) -> None:  # fmt: skip
    """Its trace is waited for as long as it has no session."""
    path = Path(traces.new())
    traces.note("test_it", str(path), process.pid)
    if begun == "no table":
        path.touch()
    trace = Trace(path) if begun == "no session" else None
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        (trace or Trace(path)).session(ended_ns=None)

    monkeypatch.setattr(time, "sleep", wait)
    result = traces.merge(None)
    assert (len(waits), result.running, result.troubles) == (1, 1, [])


def test_a_damaged_trace_of_a_process_that_goes_on(
    traces: TestTraces, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(traces.new())
    path.write_text("hello")
    traces.note("test_it", str(path), process.pid)
    monkeypatch.setattr(testtraces, "_PATIENCE_SECONDS", 0.1)
    result = traces.merge(None)
    assert result.running == 0
    (trouble,) = result.troubles
    assert str(path) in trouble


@pytest.mark.parametrize("line", ["hello", '["test", "trace", 7', "7", "[1, 2, 3, 4, 5, 6, 7]"])
def test_a_damaged_list(traces: TestTraces, line: str) -> None:
    traces.note("test_it")
    with open(traces.folder / "started.jsonl", "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(FlagshimError, match=r"started.jsonl: damaged"):
        traces.merge(None)


def test_a_file_that_is_made_while_the_folder_is_removed(
    traces: TestTraces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a keeper that is about to end."""
    remove = shutil.rmtree
    made: list[Path] = []

    def rmtree(folder: Path, ignore_errors: bool) -> None:
        remove(folder, ignore_errors)
        if not made:
            folder.mkdir()
            made.append(folder / "try.db-journal")
            made[0].touch()

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    traces.remove()
    assert made
    assert not traces.folder.exists()
