"""The pytest plugin, in sessions of its own with programs that want O_NOATIME."""

import os
import re
from pathlib import Path

import pytest

from tests.kernel.conftest import NOBODY, Place
from tests.support import rows

pytest_plugins = ["pytester"]

DD = """
    import subprocess, asyncio, os, signal, pytest
    FILE = {file!r}
    DD = ["dd", "iflag=noatime", "if=" + FILE, "status=none"]
    NOBODY = {nobody}
    def dd(**options):
        return subprocess.run(DD, user=NOBODY, capture_output=True, text=True, **options)
"""


class Session:
    """Writes tests and runs pytest on them."""

    def __init__(self, pytester: pytest.Pytester, place: Place) -> None:
        self.pytester = pytester
        self.traces = place.path / "tmp"
        self.trace = Path(pytester.path, "tests.db")
        self.head = DD.format(file=str(place.file), nobody=NOBODY)

    def run(self, tests: str, *options: str) -> pytest.RunResult:
        self.pytester.makepyfile(self.head + tests)
        return self.pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    def supervised(self, tests: str, *options: str) -> pytest.RunResult:
        return self.run(tests, "--flagshim", "--flagshim-trace", str(self.trace), *options)

    def names(self) -> list[tuple]:
        """(test, command) of each session in the trace."""
        query = """SELECT value, command FROM session JOIN label ON session_id = session.id
                   WHERE name = 'test.case.name' ORDER BY started_ns"""
        return rows(self.trace, query)


@pytest.fixture
def session(pytester: pytest.Pytester, place: Place, monkeypatch: pytest.MonkeyPatch) -> Session:
    traces = place.path / "tmp"  # nobody is to reach them; pytest's own folders are closed
    traces.mkdir()
    traces.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(traces))
    return Session(pytester, place)


TWO = """
    def test_one():
        assert dd().stdout == "content\\n"
    def test_two():
        subprocess.check_output(DD, user=NOBODY)
        subprocess.run(DD[0] + " " + " ".join(DD[1:]), shell=True, check=True, user=NOBODY)
"""


def test_off_unless_asked_for(session: Session) -> None:
    result = session.run(TWO)
    result.assert_outcomes(failed=2)
    result.stdout.no_fnmatch_line("*flagshim*supervised*")
    assert os.listdir(session.traces) == []


def test_tests_pass_and_the_summary_says_why(session: Session, place: Place) -> None:
    result = session.supervised(TWO)
    result.assert_outcomes(passed=2)
    name = "test_tests_pass_and_the_summary_says_why.py"
    result.stdout.re_match_lines(
        [
            "=+ flagshim =+",
            r"TEST +PROGRAM +PATH +REWRITTEN +FAILED",
            rf"{name}::test_two +dd +{place.file} +2 +0",
            rf"{name}::test_one +dd +{place.file} +1 +0",
            "3 processes of 2 tests supervised, 3 of 3 opens rewritten",
            rf"see: flagshim report {session.trace}",
        ],
        consecutive=True,
    )
    assert [test for test, _ in session.names()] == [
        f"{name}::test_one", f"{name}::test_two", f"{name}::test_two"
    ]  # fmt: skip
    assert os.listdir(session.traces) == []


def test_processes_are_as_they_were(session: Session) -> None:
    result = session.supervised("""
    def test_it(tmp_path):
        child = subprocess.Popen(
            ["sh", "-c", "echo $$ $PPID $PWD $A; exec sleep 97"], stdout=subprocess.PIPE,
            text=True, cwd=tmp_path, env={"A": "1", "PATH": os.environ["PATH"]},
            start_new_session=True,
        )
        assert child.args[0] == "sh"
        assert child.stdout.readline() == f"{child.pid} {os.getpid()} {tmp_path} 1\\n"
        assert os.getsid(child.pid) == child.pid
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()

    def test_status():
        with pytest.raises(subprocess.CalledProcessError) as caught:
            subprocess.run(["sh", "-c", "echo x >&2; exit 125"], check=True, stderr=-1)
        assert str(caught.value).startswith("Command '['sh', '-c',")
        assert (caught.value.returncode, caught.value.stderr) == (125, b"x\\n")

    def test_pass_fds():
        read, write = os.pipe()
        subprocess.run(["bash", "-c", "echo hello >&%d" % write], pass_fds=[write], check=True)
        os.close(write)
        assert os.read(read, 99) == b"hello\\n"

    def test_asyncio():
        async def main():
            child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            return await child.communicate(b"x")
        assert asyncio.run(main())[0] == b"x"

    def test_popen_is_itself_afterwards():
        import inspect
        assert "stdin" in inspect.signature(subprocess.Popen).parameters
        class Mine(subprocess.Popen): pass
        assert Mine("true").wait() == 0
        with pytest.raises(TypeError):
            subprocess.Popen()
    """)
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["5 processes of 5 tests supervised, 0 of 0 opens rewritten"])


def test_what_is_left_alone(session: Session) -> None:
    result = session.supervised("""
    def test_not_found():
        with pytest.raises(FileNotFoundError):
            subprocess.run(["no-such-program"])

    def test_no_program(tmp_path):
        script = tmp_path / "script"
        script.write_text("echo hello")
        script.chmod(0o755)
        with pytest.raises(OSError, match="Exec format error"):
            subprocess.run([script])

    def test_executable():
        argv0 = ["my name", "-c", "echo $0"]
        assert subprocess.check_output(argv0, executable="/bin/sh") == b"my name\\n"

    @pytest.mark.no_flagshim
    def test_marked():
        assert dd().returncode != 0
    """, "--strict-markers")  # fmt: skip
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "0 processes of 0 tests supervised, 0 of 0 opens rewritten",
            "not supervised: 1 executable=, 1 marked no_flagshim, 1 no program, 1 not found",
        ],
        consecutive=True,
    )


def test_fixtures_and_late_opens_belong_to_the_test_that_started_them(session: Session) -> None:
    result = session.supervised("""
    @pytest.fixture(scope="module")
    def server():
        script = "read x; " + " ".join(DD) + "; cat"
        child = subprocess.Popen(["sh", "-c", script], stdin=-1, stdout=-1, user=NOBODY)
        yield child
        child.communicate()

    def test_first(server):
        pass

    def test_second(server):
        server.stdin.write(b"go\\n")
        server.stdin.flush()
        assert server.stdout.readline() == b"content\\n"
    """)
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines([r".*::test_first +dd .* 1 +0"])


def test_a_process_that_goes_on(session: Session) -> None:
    result = session.supervised("""
    def test_it():
        child = subprocess.Popen(["sleep", "97"])
        with open("pid", "w") as file:
            print(child.pid, file=file)
        child.returncode = 0  # so that Python does not complain of it
    """)
    result.assert_outcomes(passed=1)
    os.kill(int((session.pytester.path / "pid").read_text()), 9)
    result.stdout.fnmatch_lines(["1 process not ended yet"])


def test_fixture(session: Session) -> None:
    result = session.run("""
    import flagshim as library

    def test_events(flagshim):
        done = flagshim(DD, user="nobody", text=True)
        assert (done.returncode, done.stdout) == (0, "content\\n")
        assert [event.decision for event in done.events] == ["cleared"]

    def test_error(flagshim):
        with pytest.raises(library.FlagshimError, match="not found"):
            flagshim(["no-such-program"])
    """)
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines(
        [
            r".*::test_events +dd .* 1 +0",
            "2 processes of 2 tests supervised, 1 of 1 open rewritten",
        ],
        consecutive=True,
    )
    result.stdout.no_fnmatch_line("see:*")


def test_fixture_and_option_together(session: Session) -> None:
    result = session.supervised("""
    def test_events(flagshim):
        assert len(flagshim(DD, user="nobody").events) == 1
        assert dd().returncode == 0
    """)
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines(["2 processes of 1 test supervised, 2 of 2 opens rewritten"])


@pytest.mark.parametrize("option", ["--flagshim", "--color=no"])
def test_xdist(session: Session, option: str) -> None:
    tests = """
    @pytest.mark.parametrize("n", range(7))
    def test_it(n, flagshim):
        done = flagshim(DD, user="nobody")
        assert len(done.events) == 1
        assert os.environ["PYTEST_XDIST_WORKER"].startswith("gw")
    """
    result = session.run(tests, option, "-n", "2", "--flagshim-trace", str(session.trace))
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(["7 processes of 7 tests supervised, 7 of 7 opens rewritten"])
    assert len({test for test, _ in session.names()}) == 7
    assert os.listdir(session.traces) == []


def test_default_trace(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(session.pytester.path / "state"))
    result = session.run("    def test_it(): dd()\n", "--flagshim")
    (trace,) = (session.pytester.path / "state" / "flagshim").iterdir()
    assert re.fullmatch(r"[0-9T]+-\d+-pytest\.db", trace.name)
    result.stdout.fnmatch_lines([f"see: flagshim report {trace}"])


def test_hostile_names(session: Session) -> None:
    result = session.supervised("""
    def test_it():
        file = os.path.join(os.path.dirname(FILE), "a\\x1b[31m\\nb")
        with open(file, "w"):
            os.chmod(file, 0o644)
        subprocess.run(["dd", "iflag=noatime", "if=" + file], check=True, user=NOBODY)
        subprocess.run([b"sh", b"-c", b"echo \\xff"], check=True)
    """)
    result.assert_outcomes(passed=1)
    assert "\x1b[31m" not in result.stdout.str()
    assert r"/a\x1b[31m\nb  1 " in result.stdout.str()


def test_where_flagshim_does_not_work(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.pytester.makeconftest("""
        import flagshim.interpreter
        flagshim.interpreter.ourselves = lambda: ["sh", "-c", "echo flagshim: no ptrace >&2; exit 125"]
    """)  # noqa: E501
    result = session.supervised(TWO)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --flagshim: flagshim: no ptrace"])
    assert os.listdir(session.traces) == []


def test_a_trace_that_cannot_be_written(session: Session) -> None:
    (session.pytester.path / "text").write_text("hello")
    result = session.run(TWO, "--flagshim", "--flagshim-trace", "text")
    assert result.ret == pytest.ExitCode.USAGE_ERROR, "before the first test, not after the last"
    result.stderr.fnmatch_lines(
        ["ERROR: --flagshim-trace: */text: exists, and is not a flagshim trace; *"]
    )
    assert os.listdir(session.traces) == []


def test_costs_nothing_when_off(session: Session) -> None:
    result = session.run("""
    def test_it():
        import sys
        loaded = [name for name in sys.modules if name.split(".")[0] == "flagshim"]
        assert loaded == ["flagshim", "flagshim.pytest_plugin"]
        assert subprocess.Popen.__init__.__module__ == "subprocess"
        assert not hasattr(subprocess.Popen.__init__, "__wrapped__")
    """)
    result.assert_outcomes(passed=1)
