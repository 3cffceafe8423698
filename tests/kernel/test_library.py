"""`import flagshim`: what a Python program gets of a supervised command."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import flagshim
from flagshim.tracee import has_ended
from tests.kernel.conftest import NOBODY, Place, Runner
from tests.support import REPOSITORY, flagshim_command, require, rows, wait_until


def dd(place: Place) -> list[str]:
    return ["dd", "iflag=noatime", f"if={place.file}", "status=none"]


def test_events_of_a_command(place: Place, run: Runner) -> None:
    assert run.native(dd(place)).returncode != 0
    with flagshim.supervise(dd(place), user="nobody", stdout=subprocess.PIPE, text=True) as dd_run:
        assert dd_run.stdout
        assert dd_run.stdout.read() == "content\n"
    assert dd_run.returncode == 0
    (event,) = dd_run.events
    assert (event.decision, event.resolved, event.fsuid) == ("cleared", str(place.file), NOBODY)
    assert (dd_run.session.seen, dd_run.session.lost, dd_run.session.uid) == (1, 0, NOBODY)
    assert dd_run.session.command == tuple(dd(place))


def test_run_is_like_subprocess(place: Place) -> None:
    script = f"cat; cat <&$1; echo $A $PWD; echo oops >&2; {' '.join(dd(place))}; exit 125"
    reader, writer = os.pipe()
    os.write(writer, b"passed\n")
    os.close(writer)
    done = flagshim.run(
        ["bash", "-c", script, "bash", str(reader)], user="nobody", input="in\n",
        env={"PATH": "/usr/bin:/bin", "A": "1", "PYTHONHOME": "/x"},
        capture_output=True, text=True, cwd=place.path,
        pass_fds=[reader],
    )  # fmt: skip
    os.close(reader)
    assert done.stdout == f"in\npassed\n1 {place.path}\ncontent\n"
    assert done.stderr == "oops\n"
    assert done.returncode == 125  # the command's own, and so no error of ours
    assert [event.decision for event in done.events] == ["cleared"]


def test_rules(place: Place, tmp_path: Path) -> None:
    kept = flagshim.run(dd(place), user="nobody", paths=["/nix/**"], capture_output=True)
    assert kept.returncode != 0
    assert [event.reason for event in kept.events] == ["no rule matches"]
    always = flagshim.run(dd(place), when="always", clear=["O_NOATIME"], capture_output=True)
    assert [event.reason for event in always.events] == ["rule says always"]
    exempt = flagshim.run(dd(place), user="nobody", exempt=["dd"], capture_output=True)
    assert (exempt.returncode, exempt.events) == (1, ())
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "mine"\nclear = ["O_NOATIME"]\n')
    mine = flagshim.run(dd(place), user="nobody", rules=rules, capture_output=True)
    assert [event.rule for event in mine.events] == ["mine"]


def test_a_named_trace_is_added_to_and_stays(place: Place, tmp_path: Path) -> None:
    for _ in range(2):
        done = flagshim.run(dd(place), user="nobody", trace=tmp_path / "t.db", capture_output=True)
        assert len(done.events) == 1
    assert rows(tmp_path / "t.db", "SELECT count(*) FROM session") == [(2,)]


def test_an_unnamed_trace_goes() -> None:
    child = flagshim.supervise(["true"])
    child.wait()
    folder = child.trace.parent
    assert folder.exists()
    del child
    assert not folder.exists()


@pytest.mark.parametrize(
    ("argv", "options", "message", "exit_code"),
    [
        (["no-such-program"], {}, "no-such-program: not found", 127),
        (["/etc/passwd"], {}, "/etc/passwd: Permission denied", 126),
        (["true"], {"user": "no-such-user"}, "no such user", 125),
        (["true"], {"trace": "/proc/trace.db"}, "not a place for a trace", 125),
        (["true"], {"rules": "/no/rules.toml"}, "/no/rules.toml", 125),
        (["true"], {"when": "sometimes"}, "'sometimes' is not one of", 125),
    ],
)
def test_what_cannot_be_done(argv, options, message, exit_code) -> None:
    with pytest.raises(flagshim.FlagshimError, match=message) as caught:
        flagshim.run(argv, capture_output=True, **options)
    assert caught.value.exit_code == exit_code


def test_a_failure_before_the_start_is_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(flagshim.FlagshimError, match="not found"):
        flagshim.supervise(["no-such-program"])
    assert capfd.readouterr().err == ""


def test_a_string_is_no_command() -> None:
    with pytest.raises(TypeError, match=r"shlex\.split"):
        flagshim.run("echo a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": ["/x"]}, "no such option: path"),
        ({"clear": "O_NOATIME"}, "clear is one string"),
        ({"exempt": "dd"}, "exempt is one string"),
        ({"keep": 5}, "keep is not a string"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, object], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        flagshim.run(["true"], **options)


def test_check() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        flagshim.run(["sh", "-c", "echo no >&2; exit 3"], check=True, capture_output=True)
    assert (caught.value.returncode, caught.value.stderr) == (3, b"no\n")


def test_signals() -> None:
    script = "trap 'echo got; exit 7' USR1; echo ready; while :; do read x; done"
    with flagshim.supervise(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        assert child.poll() is None
        child.send_signal(signal.SIGUSR1)
        assert child.communicate()[0] == b"got\n"
        assert child.returncode == 7
    with flagshim.supervise(["sleep", "97"]) as child:
        child.terminate()
    assert child.returncode == -signal.SIGTERM


def stubborn(**options) -> tuple[flagshim.Supervised, int]:
    """A command, and a child of it, that SIGTERM does not end."""
    script = "trap '' TERM; sh -c 'echo $$; while :; do sleep 97; done'; :"
    child = flagshim.supervise(["sh", "-c", script], stdout=subprocess.PIPE, **options)
    return child, int(child.stdout.readline())


def test_timeout_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flagshim.supervised._GRACE_SECONDS", 0.1)
    child, pid = stubborn(timeout=0.5)
    with pytest.raises(subprocess.TimeoutExpired, match=r"'sh', '-c'.* 0\.5 seconds"), child:
        pass
    wait_until(lambda: has_ended(pid))  # killed it is, but has yet to be scheduled to die
    assert child.returncode == -signal.SIGKILL
    assert child.session.ended_ns is None


def test_an_exception_in_the_block_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flagshim.supervised._GRACE_SECONDS", 0.1)
    child, pid = stubborn()
    with pytest.raises(ZeroDivisionError), child:
        raise ZeroDivisionError
    wait_until(lambda: has_ended(pid))


def test_kill_is_not_our_failure() -> None:
    child, pid = stubborn()
    with child:
        child.kill()
        assert child.wait() == -signal.SIGKILL
    wait_until(lambda: has_ended(pid))
    child.session  # noqa: B018  (the trace is whole)


def test_a_killed_supervisor_is_an_error() -> None:
    child, _ = stubborn()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(flagshim.FlagshimError, match="its supervisor ended before it"):
        child.wait()
    child.stdout.close()


def test_troubles_are_told_to_the_program_alone(place: Place, tmp_path: Path) -> None:
    """The process that writes the trace has something to say; it is not for CMD's stderr."""
    trace = tmp_path / "t.db"
    reader, writer = os.pipe()
    argv = [
        *flagshim_command(),
        "run",
        "-o",
        str(trace),
        "-u",
        "nobody",
        "--status-fd",
        str(writer),
    ]
    script = f"echo ready; read x; {' '.join(dd(place))}"
    child = subprocess.Popen(
        [*argv, "--", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, pass_fds=[writer], cwd=REPOSITORY,
    )  # fmt: skip
    os.close(writer)
    assert child.stdout.readline() == b"ready\n"
    lock = sqlite3.connect(trace, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    with open(reader) as status:
        assert json.loads(status.readline())["status"] == "begin"
        child.stdin.write(b"\n")
        child.stdin.flush()
        message = json.loads(status.readline())
        lock.execute("ROLLBACK")
        lock.close()
        assert message["status"] == "message"
        assert "locked; CMD goes on, events are held back" in message["text"]
        end = json.loads(status.readline())
        assert not status.read()
    assert child.communicate() == (b"content\n", b"")
    expected = {"status": "end", "exit_status": 0, "seen": 1, "cleared": 1, "lost": 0}
    assert end.items() >= expected.items()


def test_events_so_far(place: Place) -> None:
    script = f"{' '.join(dd(place))}; echo done; read x"
    with flagshim.supervise(
        ["sh", "-c", script], user="nobody", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"content\n"
        assert child.stdout.readline() == b"done\n"
        wait_until(lambda: child.events)
        child.communicate(b"\n")


PYTHON = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "library.md").read_text(), re.S)


def test_what_the_documentation_shows(place: Place) -> None:
    """As nobody: root is refused nothing."""
    script, test = PYTHON
    as_nobody = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable]
    probe = subprocess.run([*as_nobody, "-c", "import flagshim, pytest"], check=False, cwd="/")
    require("ptrace", "nobody cannot read this tree" if probe.returncode else None)
    folder = place.path / "documentation"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    options = {"cwd": folder, "text": True, "env": {**os.environ, "TMPDIR": str(folder)}}
    out = subprocess.check_output([*as_nobody, "-c", script], **options)
    hostname = Path("/etc/hostname").read_text()
    assert out == f"{hostname}\n0\ndd openat /etc/hostname cleared None\n"
    (folder / "test_it.py").write_text(test)
    out = subprocess.check_output([*as_nobody, "-m", "pytest", "-p", "no:cacheprovider"], **options)
    assert "1 passed" in out


def test_import_is_cheap() -> None:
    code = (
        "import sys; before = set(sys.modules); import flagshim; flagshim.__version__;"
        "print(sorted(set(sys.modules) - before))"
    )
    out = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, text=True)
    assert out == "['flagshim']\n"


def test_public_names() -> None:
    assert {name: getattr(flagshim, name).__module__ for name in flagshim._HOME} == flagshim._HOME
    assert set(flagshim.__all__) == {*flagshim._HOME, "__version__"}
    with pytest.raises(AttributeError, match="no_such_name"):
        flagshim.no_such_name  # noqa: B018


def test_found_where_only_the_calling_program_finds_it(tmp_path: Path) -> None:
    """As under NixOS, whose programs add their packages to sys.path themselves."""
    packages = [path for path in sys.path if "site-packages" in path or "dist-packages" in path]
    code = (
        f"import sys; sys.path += {[str(REPOSITORY), *packages]};"
        "import flagshim; print(flagshim.run(['true']).returncode)"
    )
    argv = ["/usr/bin/python3", "-I", "-S", "-c", code]
    assert subprocess.check_output(argv, cwd=tmp_path, text=True) == "0\n"
