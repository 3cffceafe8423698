"""The supervisor dies: what the program sees is what was asked for, and the trace is whole."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.asked import Asked
from tests.kernel.conftest import SECONDS, Build, Place, Runner
from tests.kernel.storms import PROCESSES, THREADS, Storm
from tests.kernel.ways import attach, tracer_of
from tests.processes import children, role_of
from tests.support import REPOSITORY, flagshim_command, rows, wait_until

OPENS, FEWER = 100_003, 30_011
MODES = pytest.mark.parametrize(("mode", "opens"), [("run", OPENS), ("exec", FEWER)])
KEPT_NS = 500_000_000
"""What may be missing of the time before a supervisor's end. It is 100 ms on a quiet machine."""
SEIZED = "SELECT time_ns FROM trouble WHERE text LIKE 'the supervisor died; %'"
"""When the successor had all threads."""


def supervisor_of(storm: Storm) -> int:
    return tracer_of(next(iter(storm.threads())))


def tracers_of(storm: Storm) -> list[int]:
    """The tracer of each thread, 0 for none."""
    pids = storm.threads()
    return [tracer_of(int(tid)) for pid in pids for tid in os.listdir(f"/proc/{pid}/task")]


@pytest.fixture
def start(run: Runner, build: Build, place: Place) -> Iterator[Callable[..., Storm]]:
    storms: list[Storm] = []

    def start_(mode: str, *options: str, opens: int = OPENS) -> Storm:
        storms.append(Storm(run, build("endure"), place, mode, *options, opens=opens))
        return storms[-1]

    yield start_
    for storm in storms:
        storm.end()


def check(trace: Path) -> None:
    assert rows(trace, "PRAGMA integrity_check") == [("ok",)]


@MODES
def test_kill_takes_the_program_along(start: Callable[..., Storm], mode: str, opens: int) -> None:
    storm = start(mode, opens=opens)
    wait_until(lambda: storm.events() > opens * 2 // 3)
    moment = time.time_ns()
    os.kill(supervisor_of(storm), signal.SIGKILL)
    wait_until(lambda: not storm.threads())
    storm.process.communicate(timeout=SECONDS)
    assert storm.process.returncode == -signal.SIGKILL
    wait_until(lambda: rows(storm.trace, "SELECT text FROM trouble"))
    assert rows(storm.trace, "SELECT text FROM trouble") == [("the supervisor was killed",)]
    assert rows(storm.trace, "SELECT ended_ns, exit_status FROM session") == [(None, None)]
    check(storm.trace)
    times = storm.times()
    assert min(times) > 0, "none failed"
    # By the storm's own clock: while the supervisor, or the machine, stands still it does, too.
    before = sum(ns < min(moment, max(times)) - KEPT_NS for ns in times)
    assert before <= storm.events() <= len(times) + PROCESSES * THREADS
    assert len(times) < opens


@MODES
def test_continue_serves_on(start: Callable[..., Storm], mode: str, opens: int) -> None:
    storm = start(mode, "--if-supervisor-dies", "continue", opens=opens)
    wait_until(lambda: storm.events() > opens * 2 // 3)
    moment = time.time_ns()
    os.kill(supervisor_of(storm), signal.SIGKILL)
    storm.release()
    wait_until(lambda: not storm.threads())
    _, err = storm.process.communicate(timeout=SECONDS)
    if mode == "run":
        assert storm.process.returncode == -signal.SIGKILL, "it was the supervisor"
        assert b"the supervisor died; " in err
    else:
        assert storm.process.returncode == 7
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    # What the former keeper says last; it may have been behind the next.
    wait_until(lambda: rows(storm.trace, "SELECT 1 FROM trouble WHERE text LIKE '% was killed%'"))
    assert rows(storm.trace, "SELECT exit_status FROM session") == [(7,)]
    said = [text for (text,) in rows(storm.trace, "SELECT text FROM trouble ORDER BY time_ns")]
    assert sorted(text.split(";")[0] for text in said) == [
        "the supervisor died", "the supervisor was killed"
    ]  # fmt: skip
    assert rows(storm.trace, "SELECT * FROM blind_spot") == [(1, "supervisor died", "endure", 1)]
    check(storm.trace)
    times = storm.times()
    assert len(times) == opens
    failed = [-ns for ns in times if ns < 0]
    # A thread looks at the clock after its open has failed; by then all may have been seized.
    ((seized_ns,),) = rows(storm.trace, SEIZED)
    assert min(failed, default=seized_ns) > moment
    assert sum(ns > seized_ns for ns in failed) <= PROCESSES * THREADS
    events = rows(storm.trace, "SELECT time_ns FROM event WHERE errno IS NULL")
    served = len(times) - len(failed)
    last = max(ns for ns in times if 0 < ns <= moment)  # as above
    lost = sum(last - KEPT_NS < ns for ns in times if 0 < ns < moment + KEPT_NS)
    assert served - lost <= len(events) <= served + PROCESSES * THREADS
    assert rows(storm.trace, "SELECT seen FROM session") == [(storm.events(),)]


def test_nobody_reads_what_the_successor_says(start: Callable[..., Storm]) -> None:
    """CMD has filled the pipe: nobody waits for a reader while opens fail."""
    storm = start("run", "--if-supervisor-dies", "continue", opens=20_011)
    storm.fill_stderr()
    os.kill(supervisor_of(storm), signal.SIGKILL)
    wait_until(lambda: rows(storm.trace, SEIZED))
    storm.release()
    wait_until(lambda: not storm.threads())
    storm.process.communicate(timeout=SECONDS)
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    assert storm.times()[-1] > 0, "it is served at the end"


def test_many_deaths(start: Callable[..., Storm]) -> None:
    """Each successor has a guard of its own."""
    storm = start("exec", "--if-supervisor-dies", "continue")
    pid = storm.process.pid
    former = 0
    for _ in range(23):
        wait_until(lambda former=former: tracer_of(pid) not in (0, former))
        former = tracer_of(pid)
        os.kill(former, signal.SIGKILL)
    wait_until(lambda: all(tracer not in (0, former) for tracer in tracers_of(storm)))
    storm.release()
    wait_until(lambda: not storm.threads())
    storm.process.communicate(timeout=SECONDS)
    assert storm.process.returncode == 7
    wait_until(lambda: rows(storm.trace, "SELECT ended_ns FROM session") != [(None,)])
    check(storm.trace)
    times = storm.times()
    assert len(times) == OPENS
    assert times[-1] > 0, "it is served at the end"


LEFT = """
import sys
from flagshim.__main__ import main
from flagshim.engines.roster import Roster
from flagshim.engines.tracer import Tracer

remove, dispatch, waiting = Roster.remove, Tracer.dispatch, []

def noted(roster, tid):
    remove(roster, tid)
    print(len(roster.tids()), file=sys.stderr)

def late(tracer, tid, status):
    if tracer.threads and tid not in tracer.threads:
        waiting.append((tid, status))
        return
    dispatch(tracer, tid, status)
    while waiting and not tracer.threads:
        dispatch(tracer, *waiting.pop(0))

Roster.remove = noted
if sys.argv.pop(1) == "late":
    Tracer.dispatch = late
main()
"""
"""Says how many the guard knows of, each time after one has gone. What has not been heard of comes
late, if wanted: its first stop is only seen after everybody else has ended."""


@pytest.mark.parametrize(
    ("when", "program", "tracees"),
    [
        ("soon", "(sh -c 'exec sh -c :' &); exec sh -c '(sh -c : &)'", 5),
        ("late", ": &", 2),
    ],
)
def test_the_guard_knows_somebody_at_any_moment(
    run: Runner, when: str, program: str, tracees: int
) -> None:
    """Whenever the supervisor dies: also as a program execs, or a daemon's parent leaves it."""
    command = run.command(["sh", "-c", program], "--if-supervisor-dies", "continue")
    done = subprocess.run(
        [sys.executable, "-c", LEFT, when, *command[command.index("run") :]], cwd=REPOSITORY,
        capture_output=True, text=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    left = [int(line) for line in done.stderr.splitlines() if line.isdecimal()]
    assert len(left) >= tracees
    assert left.index(0) == len(left) - 1, "only after the last has ended"


def guard_of(supervisor: int) -> int:
    """PID of the guard, once it is ready: it takes its title a moment after its start."""
    role = f"guard of {supervisor}"
    (guard,) = wait_until(lambda: [pid for pid in children(supervisor) if role_of(pid) == role])
    return guard


def test_a_killed_guard_is_not_missed(start: Callable[..., Storm]) -> None:
    storm = start("run", "--if-supervisor-dies", "continue", opens=20_011)
    os.kill(guard_of(supervisor_of(storm)), signal.SIGKILL)
    storm.release()
    _, err = storm.process.communicate(timeout=SECONDS)
    assert storm.process.returncode == 7
    assert b"20011 of 20011 opens rewritten" in err
    assert min(storm.times()) > 0


def test_a_stopped_guard_holds_nobody_up(start: Callable[..., Storm]) -> None:
    storm = start("run", "--if-supervisor-dies", "continue", opens=20_011)
    os.kill(guard_of(supervisor_of(storm)), signal.SIGSTOP)
    storm.release()
    storm.process.communicate(timeout=SECONDS)
    assert storm.process.returncode == 7


def test_without_guard_and_supervisor_attach_helps(run: Runner, place: Place) -> None:
    command = run.command([], "--if-supervisor-dies", "continue")
    command[command.index("run")] = "exec"
    program = Asked(place.file, *command)
    assert program.ask() == "opened"
    supervisor = tracer_of(program.pid)
    os.kill(guard_of(supervisor), signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: tracer_of(program.pid) == 0)
    assert program.ask() == "Function not implemented"
    attached = attach(run, program.pid)
    assert program.ask() == "opened"
    assert program.ask("fork") == "opened"
    attached.terminate()
    _, err = attached.communicate(timeout=SECONDS)
    assert f"flagshim attach {program.pid} serves it again" in err
    assert "2 of 2 opens rewritten" in err
    assert program.ask() == "Function not implemented"
    program.process.communicate(timeout=SECONDS)


def test_attach_leaves_the_program(run: Runner, asked: Asked) -> None:
    process = attach(run, asked.pid)
    assert asked.ask() == "opened"
    process.kill()
    process.communicate(timeout=SECONDS)
    assert asked.ask() == "Operation not permitted"


@pytest.mark.parametrize(
    ("fate", "said"),
    [("kill", "not for a process that was there before"), ("continue", "nobody takes over")],
)
def test_attach_has_no_choice(asked: Asked, fate: str, said: str) -> None:
    result = subprocess.run(
        [*flagshim_command(), "attach", "--if-supervisor-dies", fate, str(asked.pid)],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip
    assert result.returncode == 125
    assert said in result.stderr
    assert asked.ask() == "Operation not permitted"
