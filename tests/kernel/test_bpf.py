"""watch, diagnose and the bpf engine, on the kernel that is there."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flagshim.engines.bpf import program as bpf_program
from flagshim.engines.bpf.observer import Observer, Selection
from flagshim.engines.bpf.program import Program, find_tracepoints
from flagshim.engines.bpf.records import SKIPPED
from flagshim.probes import bpf as bpf_probes
from flagshim.probes import reason_bpf_unavailable
from flagshim.probes.finding import Status
from tests.asked import NOBODY, Asked
from tests.kernel.conftest import SECONDS, Build, Place, Runner
from tests.support import REPOSITORY, flagshim_command, require, rows


@pytest.fixture(scope="module", autouse=True)
def can_observe() -> None:
    require("bpf", reason_bpf_unavailable())


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own."""
    with open("/proc/mounts") as file:
        mounts = [line.split()[1] for line in file if line.split()[2] == "cgroup2"]
    require("cgroup2", None if mounts else "no cgroup2 is mounted")
    folder = Path(mounts[0]) / f"flagshim-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    deadline = time.monotonic() + SECONDS
    while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    folder.rmdir()


@contextmanager
def looking(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`flagshim watch` or `diagnose` that has begun to look."""
    process = subprocess.Popen(
        [*flagshim_command(), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "^C ends it" in line, line
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return out, err


def flagshim(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    kwargs.setdefault("cwd", REPOSITORY)
    return subprocess.run(
        [*flagshim_command(), *arguments],
        capture_output=True, text=True, timeout=SECONDS, check=False, **kwargs,
    )  # fmt: skip


# --- watch ------------------------------------------------------------------------------


def test_counts_of_100003_opens_are_exact(
    build: Build, place: Place, cgroup: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "w.db"
    options = ("--cgroup", str(cgroup), "--errno", "any", "--errno", "none", "-o", str(trace))
    with Asked(build("asked"), str(place.file)) as asked, looking("watch", *options) as watch:
        (cgroup / "cgroup.procs").write_text(str(asked.pid))
        assert asked.ask("openat", 50_021)[:3] == (0, 50_021, 0)
        assert asked.ask("plain", 40_009)[:3] == (40_009, 0, 0)
        assert asked.ask("missing", 9_973)[:3] == (0, 0, 9_973)
        out, err = end(watch)
    seen, lost = rows(trace, "SELECT seen, lost FROM session")[0]
    stored = dict(rows(trace, "SELECT errno, count(*) FROM event GROUP BY errno"))
    assert seen == 100_003
    assert sum(stored.values()) + lost == 100_003
    if not lost:
        assert stored == {"EPERM": 50_021, None: 40_009, "ENOENT": 9_973}
        assert len(out.splitlines()) == 100_003
        assert "100003 opens, 59994 failed, 100003 told of" in err
    assert dict(rows(trace, "SELECT reason, min(pid) FROM event GROUP BY reason")) == {
        "only watched": asked.pid
    }


def test_loss_is_reported_and_adds_up(build: Build, place: Place, tmp_path: Path) -> None:
    """flagshim stands still while more opens fail than the ring buffer holds."""
    trace = tmp_path / "w.db"
    storm = 10_007
    long = f"{place.path}/{'./' * 1907}{place.file.name}"  # four thousand fill the buffer
    with (
        Asked(build("asked"), long) as asked,
        looking("watch", "-p", str(asked.pid), "-o", str(trace)) as watch,
    ):
        os.kill(watch.pid, signal.SIGSTOP)
        assert asked.ask("openat", storm)[:3] == (0, storm, 0)
        os.kill(watch.pid, signal.SIGCONT)
        _, err = end(watch)
    seen, lost = rows(trace, "SELECT seen, lost FROM session")[0]
    stored = rows(trace, "SELECT count(*) FROM event")[0][0]
    assert 0 < lost < storm
    assert (seen, stored + lost) == (storm, storm)
    more = int(re.search(r"(\d+) more were lost", err)[1])
    assert more <= lost


def test_one_process_and_its_children_only(build: Build, place: Place, tmp_path: Path) -> None:
    trace = tmp_path / "w.db"
    program = build("asked")
    with (
        Asked(program, str(place.file)) as asked,
        Asked(program, str(place.file)) as other,
        looking("watch", "-p", str(asked.pid), "-o", str(trace)) as watch,
    ):
        asked.ask("openat", 13)
        asked.ask("fork", 17)
        other.ask("openat", 19)
        asked.ask("plain", 23)
        out, _ = end(watch)
    assert len(out.splitlines()) == 30
    assert f"asked              openat    EPERM    O_RDONLY|O_NOATIME {place.file}" in out
    found = rows(trace, "SELECT pid, count(*), min(fsuid), min(owner_uid) FROM event GROUP BY pid")
    counts = {pid: rest for pid, *rest in found}
    assert counts.pop(asked.pid) == [13, NOBODY, 0]
    assert [count for count, *_ in counts.values()] == [17], "of its child"


def test_filters_by_flag_errno_and_program(build: Build, place: Place) -> None:
    with Asked(build("asked"), str(place.file)) as asked:
        pid = ("-p", str(asked.pid))
        with looking("watch", *pid, "--errno", "ENOENT", "--flag", "O_NOATIME") as watch:
            asked.ask("openat", 7)
            asked.ask("missing", 11)
            assert len(end(watch)[0].splitlines()) == 11
        with looking("watch", *pid, "--program", "another") as watch:
            asked.ask("openat", 7)
            assert end(watch)[0] == ""
        with looking("watch", *pid, "--program", "asked") as watch:
            asked.ask("openat2", 5)
            asked.ask("setfl", 3)
            lines = end(watch)[0].splitlines()
    assert [line.split()[2:5] for line in lines] == [["asked", "openat2", "EPERM"]] * 5 + [
        ["asked", "fcntl", "EPERM"]
    ] * 3


def test_names_are_escaped_and_the_watch_ends_with_the_process(build: Build, place: Place) -> None:
    file = place.path / "new\nline\x1b[31m"
    file.write_text("x")
    with Asked(build("asked"), str(file)) as asked, looking("watch", "-p", str(asked.pid)) as watch:
        asked.ask("openat", 1)
        asked.process.communicate(timeout=SECONDS)
        out, _ = watch.communicate(timeout=SECONDS)
    assert watch.returncode == 0
    assert len(out.splitlines()) == 1
    assert "new\\nline\\x1b[31m" in out


def test_a_reader_that_has_seen_enough_ends_it(build: Build, place: Place, tmp_path: Path) -> None:
    trace = tmp_path / "w.db"
    with (
        Asked(build("asked"), str(place.file)) as asked,
        looking("watch", "-p", str(asked.pid), "-o", str(trace)) as watch,
    ):
        asked.ask("openat", 3)
        assert watch.stdout is not None
        watch.stdout.readline()
        watch.stdout.close()
        asked.ask("openat", 4)
        assert watch.wait(timeout=SECONDS) == 0
    ((seen, lost, endless),) = rows(trace, "SELECT seen, lost, ended_ns IS NULL FROM session")
    assert 3 <= seen <= 7
    assert (lost, endless) == (0, 0)
    assert rows(trace, "SELECT count(*) FROM event") == [(seen,)]


def test_screen_on_a_terminal(build: Build, place: Place) -> None:
    master, slave = pty.openpty()
    with Asked(build("asked"), str(place.file)) as asked:
        watch = subprocess.Popen(
            [*flagshim_command(), "watch", "-p", str(asked.pid)],
            stdin=slave, stdout=slave, stderr=slave, cwd=REPOSITORY,
        )  # fmt: skip
        os.close(slave)
        screen = read_until(master, b"told   none")
        asked.ask("openat", 37)
        screen += read_until(master, b"EPERM 37")
        watch.send_signal(signal.SIGINT)
        screen += read_until(master, b"37 told of")
        assert watch.wait(timeout=SECONDS) == 0
    os.close(master)
    assert screen.count(b"\x1b[?1049h") == screen.count(b"\x1b[?1049l") == 1
    assert str(place.file).encode() in screen


def read_until(fd: int, text: bytes) -> bytes:
    found = b""
    deadline = time.monotonic() + SECONDS
    while text not in found:
        assert time.monotonic() < deadline, found
        if select.select([fd], [], [], 0.1)[0]:
            found += os.read(fd, 65536)
    return found


NESTED = """
int printing(void *record)
{
    bpf_trace_printk("flagshim's tests\\n");
    return 0;
}
int printed(void *record) { return 0; }
"""
"""The kernel leaves out the one inside of the other."""


def in_a_child(action: Callable[[], None]) -> None:
    """Loading a program leaves its marks: variables, and a mount namespace for tracefs."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_the_kernel_leaves_out_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nested.c").write_text(NESTED)
    monkeypatch.setattr(bpf_program, "_SOURCES", tmp_path)

    def nested() -> None:
        find_tracepoints()
        with Program("nested.c") as program:
            program.attach_tracepoint("bpf_trace:bpf_trace_printk", "printed")
            assert program.skipped() == {"printed": 0}
            software, cpu_clock = 1, 0  # linux/perf_event.h
            program.bpf.attach_perf_event(
                ev_type=software, ev_config=cpu_clock, fn_name=b"printing",
                sample_period=1_000_003, pid=os.getpid(),
            )  # fmt: skip
            deadline = time.monotonic() + SECONDS
            while program.skipped()["printed"] < 7:
                assert time.monotonic() < deadline
            assert program.skipped()["printing"] == 0

    in_a_child(nested)


def test_all_that_may_be_left_out_is_asked_for() -> None:
    def observe() -> None:
        with Observer(Selection(pids=(os.getpid(),))) as observer:
            observer.start()
            assert set(SKIPPED) <= set(observer._program.skipped())

    in_a_child(observe)


# --- diagnose -----------------------------------------------------------------------------


def diagnosed(text: str) -> list[tuple[str, str, str]]:
    """(title, count, sureness) of each cause in a diagnosis."""
    text = re.sub(r"\n +(?!program|paths|because|remedy)", " ", text)
    return re.findall(r"\n\d+\. (.*?): (\d+) EPERM.*?because  ([a-z ]+):", text, re.DOTALL)


def test_a_storm_of_o_noatime(build: Build, place: Place, tmp_path: Path) -> None:
    trace = tmp_path / "d.db"
    script = f"(echo openat 509; echo missing 17) | {build('asked')} {place.file}"
    done = flagshim("diagnose", "-u", "nobody", "-o", str(trace), "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    title = f"O_NOATIME on files owned by uid 0 by fsuid {NOBODY}"
    assert [found[:2] for found in diagnosed(done.stdout)] == [(title, "509")]
    assert "\nStorm: 509 EPERM" in done.stdout
    assert "one up to 509 times" in done.stdout
    assert "remedy   flagshim run -u nobody -- " in done.stdout
    stored = flagshim("diagnose", "--trace", str(trace))
    assert [found[:2] for found in diagnosed(stored.stdout)] == [(title, "509")], stored.stdout


def test_of_a_running_process_it_is_certain(build: Build, place: Place) -> None:
    with Asked(build("asked"), str(place.file)) as asked:
        with looking("diagnose", "-p", str(asked.pid), "--for", "60") as diagnose:
            asked.ask("openat", 101)
            out, _ = end(diagnose)
        assert f"remedy   flagshim attach {asked.pid}\n" in out
    title = f"O_NOATIME on files owned by uid 0 by fsuid {NOBODY}"
    assert diagnosed(out) == [(title, "101", "certain")], out
    assert "100.0 % of all failed opens" in out


WRITER = """
import os, sys
for path, flags in ((sys.argv[1], os.O_WRONLY), (sys.argv[2], os.O_WRONLY | os.O_TRUNC)):
    for _ in range(29):
        try:
            os.close(os.open(path, flags))
        except PermissionError:
            pass
sys.stdin.read()
"""


def test_append_only_and_immutable(place: Place) -> None:
    files = {"a": place.path / "append", "i": place.path / "immutable"}
    for letter, file in files.items():
        file.write_text("x")
        done = subprocess.run(["chattr", f"+{letter}", file], capture_output=True, check=False)
        require("chattr", None if not done.returncode else done.stderr.decode())
    try:
        paths = [str(file) for file in files.values()]
        done = flagshim("diagnose", "--", sys.executable, "-c", WRITER, *paths, stdin=None)
    finally:
        for letter, file in files.items():
            subprocess.run(["chattr", f"-{letter}", file], check=True)
    assert sorted(found[:2] for found in diagnosed(done.stdout)) == [
        ("writing to an append-only file without O_APPEND", "29"),
        ("writing to an immutable file", "29"),
    ], done.stdout
    assert f"chattr -a {files['a']}" in done.stdout
    assert f"chattr -i {files['i']}" in done.stdout


FILTERED = """
import os, sys
import pyseccomp
program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
flag = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, os.O_NOATIME, os.O_NOATIME)
program.add_rule(pyseccomp.ERRNO(1), "openat", flag)
program.load()
for _ in range(31):
    try:
        os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_NOATIME))
    except PermissionError:
        pass
"""


def test_seccomp_is_told_from_o_noatime(place: Place) -> None:
    """The file is nobody's and so is the program: only the evidence of seccomp is left."""
    done = flagshim(
        "diagnose", "-u", "nobody", "--", sys.executable, "-c", FILTERED, str(place.file)
    )
    assert diagnosed(done.stdout) == [
        ("a seccomp filter answers openat with EPERM", "31", "certain")
    ], done.stdout + done.stderr


def test_the_answer_of_a_fuse_server(place: Place) -> None:
    """With squash_to_uid the client owns all it sees: it is the server that is refused."""
    reason = None if os.path.exists("/dev/fuse") else "no /dev/fuse"
    require("fuse", reason or (None if shutil.which("fuse-overlayfs") else "no fuse-overlayfs"))
    for name in ("lower", "upper", "work", "merged"):
        (place.path / name).mkdir()
        os.chown(place.path / name, NOBODY, NOBODY)
    lower = place.path / "lower" / "file"
    lower.write_text("lower\n")
    for path in (lower.parent, lower):
        os.chown(path, 1, 1)
    layers = ",".join(f"{name}dir={place.path}/{name}" for name in ("lower", "upper", "work"))
    mount = place.path / "merged"
    server = subprocess.Popen(
        ["setpriv", "--bounding-set", "-fowner", "--inh-caps", "-fowner", "fuse-overlayfs", "-f",
         "-o", f"{layers},squash_to_uid={NOBODY},allow_other", str(mount)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + SECONDS
        while not mount.is_mount():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        script = f"for n in 1 2 3 4 5 6 7; do dd iflag=noatime if={mount}/file; done"
        done = flagshim("diagnose", "-u", "nobody", "--", "sh", "-c", script)
    finally:
        subprocess.run(["umount", mount], check=True)
        server.wait(timeout=SECONDS)
    found = diagnosed(done.stdout)  # of a dd that is gone by then it is not as sure
    for title, _, _ in found:
        assert re.fullmatch(f"the FUSE server of {mount} .* answered openat with EPERM", title)
    assert sum(int(count) for _, count, _ in found) == 7, done.stdout
    assert f"flagshim diagnose -p {server.pid}" in done.stdout


def test_without_bpf_ptrace_and_that_is_said(build: Build, place: Place) -> None:
    """As an ordinary user."""
    done = flagshim(
        "diagnose", "-o", str(place.path / "d.db"), "--", "dd", "iflag=noatime", f"if={place.file}",
        user=NOBODY, env={**os.environ, "HOME": str(place.path)}, cwd=place_for(place),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "for root (CAP_BPF and CAP_PERFMON)" in done.stderr
    assert "ptrace instead" in done.stderr
    title = f"O_NOATIME on files owned by uid 0 by fsuid {NOBODY}"
    assert diagnosed(done.stdout) == [(title, "1", "certain")]


def place_for(place: Place) -> Path:
    os.chown(place.path, NOBODY, NOBODY)
    return REPOSITORY


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["watch"], "nobody to watch; name a process"),
        (["watch", "-p", "4194304"], "no process 4194304"),
        (["watch", "-p", "2"], "kernel thread"),
        (["watch", "--cgroup", "/tmp"], "not a folder of the cgroup v2 hierarchy"),
        (["watch", "--cgroup", "/nonexistent"], "No such file"),
        (["watch", "--all", "--errno", "EFOO"], "no such error"),
        (["watch", "--all", "--flag", "O_FOO"], "not a flag of open(2)"),
        (["diagnose"], "name what to look at"),
        (["diagnose", "-p", "4194304"], "no process 4194304"),
        (["diagnose", "--trace", "/nonexistent"], "no such file"),
        (["attach", "--engine", "bpf", "4194304"], "no process 4194304"),
        (["attach", "--engine", "bpf", "--when", "refused", "1"], "cannot wait for the kernel"),
        (["run", "--engine", "bpf", "--", "/bin/busybox", "true"], "a static program"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = flagshim(*arguments, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)})
    assert (done.returncode, done.stdout) == (125, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("**/*.db"))


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    done = flagshim("diagnose", "-o", str(tmp_path / "t.db"), "--", "/nonexistent")
    assert (done.returncode, done.stdout) == (127, "")


def test_static_process_is_found_out(run: Runner, tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/busybox", "sleep", "60"]) as sleeper:
        try:
            done = flagshim(
                "attach", "--engine", "bpf", "-o", str(tmp_path / "t"), str(sleeper.pid)
            )
        finally:
            sleeper.kill()
    assert done.returncode == 125
    assert "maps no libc (a static program" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_this_kernel_lacks_is_one_line(build: Build, place: Place, tmp_path: Path) -> None:
    if bpf_probes.rewrite().status is Status.WORKS:
        pytest.skip("this kernel lets a uprobe program write registers")
    with Asked(build("asked"), str(place.file)) as asked:
        trace = tmp_path / "t.db"
        done = flagshim("attach", "--engine", "bpf", "-o", str(trace), str(asked.pid))
        assert done.returncode == 125
        assert "does not let a uprobe program write registers" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not trace.exists()
        assert asked.ask("openat", 3)[:3] == (0, 3, 0)
    done = flagshim("run", "--engine", "auto", "--when", "always", "-o", str(trace), "--", "true")
    assert done.returncode == 0
    assert rows(trace, "SELECT engine FROM session") == [("ptrace",)]
