"""What others see of flagshim: the processes beside a supervised program."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.conftest import SECONDS, Build, Place, Runner
from tests.kernel.ways import tracer_of
from tests.processes import arguments, children, role_of
from tests.support import REPOSITORY, rows, wait_until

OPENS = 20011


@contextmanager
def supervised(run: Runner, mode: str, argv: list[str]) -> Iterator[tuple[int, int, int]]:
    """A command that runs, and the PIDs of it, of its supervisor and of the keeper."""
    command = run.command(argv, user=None)
    command[command.index("run")] = mode
    if mode == "exec":  # as short as it can be: a title finds little room
        at = command.index("-o")
        del command[at : at + 2]
        run.trace = run.trace.parent / "flagshim" / f"{argv[0]}.db"
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "XDG_STATE_HOME": str(run.trace.parent.parent)},
    )  # fmt: skip
    try:
        if mode == "run":
            supervisor = process.pid
            (cmd,) = wait_until(
                lambda: [pid for pid in children(supervisor) if arguments(pid) == argv]
            )
        else:
            cmd = process.pid
            wait_until(lambda: arguments(cmd) == argv)
            supervisor = tracer_of(cmd)
        (keeper,) = wait_until(
            lambda: [pid for pid in children(supervisor) if role_of(pid).startswith("keeper of ")]
        )
        yield cmd, supervisor, keeper
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: bool(rows(run.trace, "SELECT ended_ns FROM session")[0][0]))


def shown(pid: int) -> str:
    return subprocess.check_output(
        ["ps", "-ww", "-o", "comm=,args=", "-p", str(pid)], text=True
    ).strip()


@pytest.mark.parametrize("mode", ["run", "exec"])
def test_ps_shows_what_they_are(run: Runner, mode: str) -> None:
    with supervised(run, mode, ["cat", "-", "/dev/null"]) as (cmd, supervisor, keeper):
        assert shown(cmd).split() == ["cat", "cat", "-", "/dev/null"]
        name, what = shown(keeper).split(maxsplit=1)
        assert name == "flagshim"
        # It has only the room that the command line took.
        assert f"flagshim: keeper of {supervisor}, writes {run.trace}".startswith(what)
        assert len(what) > len(f"flagshim: keeper of {supervisor}, writes /")
        name, what = shown(supervisor).split(maxsplit=1)
        assert name == "flagshim"
        if mode == "exec":
            assert what == f"flagshim: supervisor of {cmd} (cat)"
        else:
            assert what.endswith("-- cat - /dev/null"), "what somebody typed"


def test_who_looks_for_a_command_line_finds_one_process(run: Runner) -> None:
    """`pkill -f` and `pgrep -f` are how scripts look for their machine."""
    mark = f"guest={os.getpid()}-{time.monotonic_ns()}"
    with supervised(run, "exec", ["sh", "-c", "read x; :", mark]) as (cmd, _, _):
        found = subprocess.check_output(["pgrep", "-f", f"{mark}$"], text=True).split()
        assert found == [str(cmd)]


def test_a_title_leaves_the_environment_alone(run: Runner) -> None:
    """It is written over the arguments, and the environment lies right behind them."""
    with supervised(run, "exec", ["cat"]) as processes:
        environments = {Path(f"/proc/{pid}/environ").read_bytes() for pid in processes}
        assert len(environments) == 1
        assert b"PATH=" in environments.pop()


@pytest.mark.parametrize("mode", ["run", "exec"])
def test_a_hangup_does_no_harm(build: Build, run: Runner, place: Place, mode: str) -> None:
    """Who closes the terminal, or rotates logs, sends SIGHUP to more than he should."""
    storm = [build("storm"), "2", "1", str(OPENS), str(place.file)]
    argv = ["sh", "-c", 'trap "" HUP; "$@" & read x; wait $!', "sh", *storm]
    with supervised(run, mode, argv) as (_, supervisor, keeper):
        wait_until(lambda: rows(run.trace, "SELECT count(*) > 97 FROM event")[0][0])
        for pid in (supervisor, keeper):
            os.kill(pid, signal.SIGHUP)
        wait_until(lambda: rows(run.trace, "SELECT count(*) FROM event")[0][0] == OPENS)
        assert os.path.exists(f"/proc/{supervisor}")
        assert os.path.exists(f"/proc/{keeper}")
    assert rows(run.trace, "SELECT seen, lost, exit_status FROM session") == [(OPENS, 0, 0)]
