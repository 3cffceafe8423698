"""`flagshim run` with a gate: whose exit status it is, and where it is said."""

import subprocess
from pathlib import Path

import pytest

from tests.support import HANGS, flagshim_command, rows

READ = "dd status=none iflag=noatime if={} of=/dev/null"


def run(
    trace: Path, *options: str, script: str, when: str = "always"
) -> subprocess.CompletedProcess[str]:
    command = ["run", "-o", str(trace), "--when", when, *options, "--", "sh", "-c", script]
    return subprocess.run(
        [*flagshim_command(), *command], capture_output=True, text=True, check=False, timeout=HANGS
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content\n")
    return path


@pytest.mark.parametrize(
    ("end", "status"), [("exit 0", 122), ("exit 3", 3), ("kill -TERM $$", -15)]
)
def test_cmd_s_own_failure_goes_before_the_gate_s(
    tmp_path: Path, file: Path, end: str, status: int
) -> None:
    script = f"{READ.format(file)}; echo out; echo err >&2; {end}"
    result = run(tmp_path / "t.db", "--fail-on", "rewrites > 0", script=script)
    assert result.returncode == status
    assert result.stdout == "out\n"
    said = result.stderr.splitlines()
    assert said[0] == "err"
    assert said[-1] == "flagshim: gate failed: rewrites > 0 (1)"
    assert "1 of 1 open rewritten" in said[-2]


def test_a_gate_that_passes(tmp_path: Path, file: Path) -> None:
    gate = ("--fail-on", "rewrites > 1", "--fail-on", "lost events", "--fail-on", "refusals")
    result = run(tmp_path / "t.db", *gate, script=READ.format(file))
    assert result.returncode == 0
    assert result.stderr.splitlines()[-1] == "flagshim: gate passed"


def test_only_the_session_of_this_run_is_judged(tmp_path: Path, file: Path) -> None:
    trace = tmp_path / "t.db"
    assert run(trace, script=READ.format(file)).returncode == 0
    result = run(trace, "--fail-on", "rewrites", script="exit 0")
    assert result.returncode == 0
    assert rows(trace, "SELECT count(*) FROM session") == [(2,)]


def test_the_trace_that_is_written_to_may_be_the_baseline(tmp_path: Path, file: Path) -> None:
    trace, other = tmp_path / "t.db", tmp_path / "other"
    other.write_text("content\n")
    assert run(trace, script=READ.format(file)).returncode == 0
    for script, status in ((READ.format(file), 0), (READ.format(other), 122)):
        result = run(trace, "--baseline", str(trace), script=script)
        assert result.returncode == status
    assert f"  + rewritten  noatime  dd  {other}  (1x)" in result.stderr.splitlines()
    assert f"  - rewritten  noatime  dd  {file}  (not this time)" in result.stderr.splitlines()
    assert run(trace, "--baseline", str(trace), script=READ.format(other)).returncode == 0


@pytest.mark.parametrize(("end", "status"), [("exit 0", 125), ("exit 3", 3)])
def test_a_gate_that_cannot_be_judged_does_not_pass(tmp_path: Path, end: str, status: int) -> None:
    trace = tmp_path / "t.db"
    result = run(trace, "--fail-on", "refusals", script=f"rm {trace}*; {end}")
    assert result.returncode == status
    last = result.stderr.splitlines()[-1]
    assert f"{trace}: " in last  # gone, or empty where it was not yet open
    assert ("could not be judged" in last) == bool(status == 3)
