"""What a program, a guest or an impatient person may do to break the supervisor."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.storms import new_log, times_in
from tests.kernel.ways import Way
from tests.processes import children, name_of
from tests.support import REPOSITORY, flagshim_command, require, rows, wait_until


@pytest.mark.parametrize("size", [24, 64, 128, 4096])
def test_open_how_in_shared_read_only_memory(
    build: Build, run: Runner, place: Place, size: int
) -> None:
    odd = build("odd")
    assert run.native([odd, "shared", str(place.file), str(size)]).stdout == "errno 1\n"
    shim = run.supervised([odd, "shared", str(place.file), str(size)])
    assert (shim.status, shim.out) == (0, "noatime 0\n")
    assert shim.events("decision, errno") == [("cleared", None)]


def test_open_how_with_an_unknown_tail_stays_refused(
    build: Build, run: Runner, place: Place
) -> None:
    odd = build("odd")
    natively = run.native([odd, "tail", str(place.file), "64"]).stdout
    assert natively == "errno 7\n", "E2BIG, openat2(2)"
    shim = run.supervised([odd, "tail", str(place.file), "64"])
    assert (shim.status, shim.out) == (0, natively)


@pytest.mark.parametrize("data", ["7", "0xF1A0", "0xF1A1", "0xF1A3", "0xF1A8", "0xF1AF"])
def test_filter_of_the_program_that_answers_as_ours(
    build: Build, run: Runner, place: Place, data: str
) -> None:
    shim = run.supervised([build("odd"), "cookie", "-", data])
    assert (shim.status, shim.out) == (0, "-1 38\n"), "ENOSYS, as without a tracer"


def test_owner_of_a_temporary_file_keeps_the_flag(build: Build, run: Runner) -> None:
    shim = run.supervised([build("odd"), "tmpfile", "/tmp"])
    if shim.out.startswith("errno"):
        pytest.skip("no O_TMPFILE in /tmp")
    assert shim.out == "noatime 1\n"
    assert shim.events("decision") == [("kept",)]


def test_interrupted_call_and_another_from_the_same_buffer(
    build: Build, run: Runner, place: Place
) -> None:
    fifo, mine = place.path / "fifo", place.path / "mine"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    mine.touch()
    os.chown(mine, NOBODY, NOBODY)
    shim = run.supervised([build("odd"), "reuse", str(fifo), str(mine)])
    assert shim.out == "errno 4\nnoatime 1\n"
    assert set(shim.events("path, decision, errno")) == {
        (str(fifo), "cleared", "EINTR"),
        (str(mine), "kept", None),
    }


def test_supervisor_without_descriptors_to_spare(build: Build, run: Runner, place: Place) -> None:
    """It cannot look anything up then, and still lets everybody run."""
    opens, log = 1_000_003, place.path / "log"
    new_log(log, opens)
    endure = [build("endure"), "2", "2", str(opens), str(place.file), str(log)]
    process = subprocess.Popen(run.command(endure), stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    try:
        wait_until(lambda: _count(run.trace) > 97)
        subprocess.run(["prlimit", "--pid", str(process.pid), "--nofile=3"], check=True)
        before = _count(run.trace)
        wait_until(lambda: _count(run.trace) > before + 4001)
        assert process.poll() is None, "it went on all along"
    finally:
        process.kill()  # and all of them
        process.wait(timeout=SECONDS)
    assert min(times_in(log)) > 0, "an open failed"


def _count(trace: Path) -> int:
    try:
        return rows(trace, "SELECT count(*) FROM event")[0][0]
    except Exception:  # not there yet
        return 0


def test_proc_of_another_pid_namespace(run: Runner) -> None:
    argv = ["unshare", "-pf", "--kill-child", *run.command(["true"], user=None)]
    result = subprocess.run(
        argv, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS
    )
    if result.stderr.startswith("unshare"):
        require("userns", result.stderr.strip())
    assert result.returncode == 125
    assert "another PID namespace" in result.stderr


IGNORES = (
    "import os, signal, sys\n"
    "for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\n"
    "for i in range(1009): os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_NOATIME))\n"
    "os.write(1, b'x'); os._exit(5)\n"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_impatience_at_the_end_costs_nothing(run: Runner, place: Place, number: int) -> None:
    for milliseconds in range(0, 22, 2):
        command = run.command(["/usr/bin/python3", "-S", "-c", IGNORES, str(place.file)])
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(milliseconds / 1000)  # the moment is what is tried here
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        error = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 5, error
        assert "1009 of 1009 opens rewritten" in error
        assert rows(run.trace, "SELECT exit_status, seen FROM session") == [(5, 1009)]


@pytest.mark.parametrize("target", ["/dev/full", "closed", "pipe"])
def test_exit_status_survives_an_unwritable_stderr(run: Runner, target: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    redirection = {"closed": "2>&-", "pipe": f"2>&{write_end}"}.get(target, f"2>{target}")
    try:
        for argv, status in ((["sh", "-c", "exit 7"], 7), (["/no/such"], 127)):
            command = run.command(argv, user=None)
            result = subprocess.run(
                ["bash", "-c", f'"$@" {redirection}', "bash", *command], stdout=subprocess.PIPE,
                check=False, cwd=REPOSITORY, pass_fds=[write_end],
            )  # fmt: skip
            assert (result.returncode, result.stdout) == (status, b"")
    finally:
        os.close(write_end)


def test_many_inherited_descriptors(run: Runner, place: Place) -> None:
    script = (
        "import os, sys, resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "for i in range(1103): os.set_inheritable(os.open('/dev/null', os.O_RDONLY), True)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    command = run.command(["dd", "iflag=noatime", f"if={place.file}", "of=/dev/null"])
    result = subprocess.run(
        ["/usr/bin/python3", "-c", script, *command], capture_output=True, text=True, check=False,
        cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip
    assert "1 of 1 open rewritten; see" in result.stderr
    assert _count(run.trace) == 1


def test_several_runs_make_one_trace(run: Runner, place: Place, tmp_path: Path) -> None:
    dd = ["dd", "iflag=noatime", f"if={place.file}", "of=/dev/null", "status=none"]
    for attempt in range(5):
        trace = tmp_path / f"shared{attempt}.db"
        commands = [[*flagshim_command(), "run", "-o", str(trace), "-u", "nobody", "--", *dd]] * 5
        processes = [
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
            for command in commands
        ]
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * 5, errors
        assert rows(trace, "SELECT count(*), count(DISTINCT session_id) FROM event") == [(5, 5)]
        assert rows(trace, "SELECT count(*) FROM session WHERE seen = 1") == [(5,)]


@pytest.mark.parametrize("name", [":memory:", "file:u.db?mode=rwc", "a?b#c%d", "new\nline"])
def test_names_that_mean_something_else_to_sqlite(
    run: Runner, place: Place, tmp_path: Path, name: str
) -> None:
    dd = ["dd", "iflag=noatime", f"if={place.file}", "of=/dev/null", "status=none"]
    command = [*flagshim_command(), "run", "-o", name, "-u", "nobody", "--", *dd]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == [name]
    connection_name = tmp_path / "plain.db"
    (tmp_path / name).rename(connection_name)
    assert _count(connection_name) == 1


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_places_that_are_no_place_for_a_trace(run: Runner, tmp_path: Path, name: str) -> None:
    with open(tmp_path / "out", "w") as out:
        result = subprocess.run(
            [*flagshim_command(), "run", "-o", name, "--", "true"], stdout=out,
            stderr=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY,
        )  # fmt: skip
    if result.returncode == 0:  # a regular file behind the name is as good as its own name
        assert _count(tmp_path / "out") == 0
    else:
        assert result.returncode == 125
        assert len(result.stderr.splitlines()) == 1


def test_command_that_ended_gets_no_signal_under_its_old_number(run: Runner, place: Place) -> None:
    """What CMD left running is told instead."""
    script = (
        "trap 'echo told > $0; exit' TERM; echo up > $0.up; n=0;"
        "while [ $n -lt 200 ]; do sleep 0.05; n=$((n+1)); done"
    )
    note = place.path / "note"
    os.chown(place.path, NOBODY, NOBODY)
    argv = run.command(["sh", "-c", 'setsid sh -c "$0" "$1" & exit 3', script, str(note)])
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    deadline = time.monotonic() + SECONDS
    while not Path(f"{note}.up").exists() or "sh" in map(name_of, children(process.pid)):
        assert time.monotonic() < deadline
    process.terminate()
    assert process.wait(timeout=SECONDS) == 3
    assert note.read_text() == "told\n"


OPENS_WITH = """
import ctypes, os, sys
OPENAT, AT_FDCWD = 257, -100
openat = ctypes.CDLL(None, use_errno=True).syscall
fd = openat(OPENAT, AT_FDCWD, sys.argv[1].encode(), ctypes.c_uint(int(sys.argv[2])), 0)
print(os.strerror(ctypes.get_errno()) if fd < 0 else os.read(fd, 7).decode())
"""


def test_a_flag_that_nobody_knows(way: Way, place: Place) -> None:
    """openat ignores what it does not know, the sign bit too."""
    flags = os.O_RDONLY | os.O_NOATIME | 1 << 31
    shim = way(["/usr/bin/python3", "-c", OPENS_WITH, str(place.file), str(flags)])
    assert shim.out == "content\n", shim.err
    assert shim.events("decision") == [("cleared",)]


def test_more_groups_than_a_page_holds(way: Way, place: Place) -> None:
    groups = ",".join(str(4_294_960_000 + n) for n in range(1009))
    become = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--groups", groups]
    read = ["dd", "iflag=noatime", f"if={place.file}", "status=none"]
    shim = way([*become, *read], user=None)
    assert shim.out == "content\n", shim.err
    assert shim.events("decision") == [("cleared",)]
