"""Bad input of `flagshim run`: one line, cause and way out, and CMD does not start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import HANGS, REPOSITORY, flagshim_command

BAD = [
    ([], "no CMD", 125),
    (["--"], "no CMD", 125),
    (["--frob", "--", "true"], "No such option", 125),
    (["--when", "never", "--", "true"], "'never' is not one of 'refused', 'always'", 125),
    (["--clear", "O_CREAT", "--", "true"], "without O_CREAT", 125),
    (["--clear", "O_FOO", "--", "true"], "'O_FOO' is not a flag of open(2)", 125),
    (["--clear", "O_SYNC", "--", "true"], "never refuses O_SYNC", 125),
    (["--path", "/a[", "--", "true"], "has a [ without its ]", 125),
    (["--path", "relative", "--", "true"], "never matches", 125),
    (["--rules", "/no/such.toml", "--", "true"], "/no/such.toml: No such file", 125),
    (["--rules", "/x", "--when", "always", "--", "true"], "--rules together with", 125),
    (["--except", "/usr/bin/gdb", "--", "true"], "--except: glob '/usr/bin/gdb' never", 125),
    (["--except", "gdb[", "--", "true"], "has a [ without its ]", 125),
    (["--keep", "30w", "--", "true"], "--keep 30w: neither a number", 125),
    (["-u", "no-such-user", "--", "true"], "no such user", 125),
    (["-u", "99999999999", "--", "true"], "no such user", 125),
    (["-o", "/no/such/folder/t.db", "--", "true"], "/no/such/folder/t.db", 125),
    (["-o", "/", "--", "true"], "/: not a regular file", 125),
    (["--", "no-such-program"], "no-such-program: not found", 127),
    (["--", "/no/such/program"], "/no/such/program: not found", 127),
    (["--", ""], "'': not found", 127),
    (["--", "/etc/passwd"], "/etc/passwd: Permission denied", 126),
    (["--", "/"], "/: Is a directory", 126),
]


def flagshim(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*flagshim_command(), *arguments], capture_output=True, text=True, check=False,
        timeout=HANGS, cwd=REPOSITORY, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(("arguments", "said", "status"), BAD)
def test_bad_input(tmp_path: Path, arguments: list[str], said: str, status: int) -> None:
    result = flagshim("run", *arguments, XDG_STATE_HOME=str(tmp_path))
    assert result.returncode == status
    assert said in result.stderr
    assert result.stderr.startswith("flagshim: ")
    assert len(result.stderr.splitlines()) == 1
    assert ";" in result.stderr, "the way out is said too"
    assert list(tmp_path.glob("flagshim/*")) == [], "no trace of what never ran"


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["--frob"]])
def test_no_command(arguments: list[str]) -> None:
    result = flagshim(*arguments)
    assert result.returncode == 125
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_help_and_version() -> None:
    assert "run" in flagshim("--help").stdout
    assert "-u, --user" in flagshim("run", "--help").stdout
    assert flagshim("--version").stdout.startswith("flagshim, version ")


def test_state_folder_that_cannot_be_made() -> None:
    result = flagshim("run", "--", "true", XDG_STATE_HOME="/proc/nothing")
    assert result.returncode == 125
    assert "name a trace with -o" in result.stderr


def test_options_of_the_command_are_its_own(tmp_path: Path) -> None:
    result = flagshim("run", "-o", str(tmp_path / "t"), "echo", "-o", "--when", "-h")
    assert result.stdout == "-o --when -h\n"


INTERRUPTED_AT_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.{handler})
class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "flagshim.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv[1:] = ["--version"]
from flagshim.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("handler", "status"), [("default_int_handler", -signal.SIGINT), ("SIG_IGN", 0)]
)
def test_interrupted_before_it_can_say_so(handler: str, status: int) -> None:
    """Most of a start is the import of modules. No traceback comes of it."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_IMPORT.format(handler=handler)],
        capture_output=True, text=True, check=False, timeout=HANGS, cwd=REPOSITORY,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize("limit", ["-n 8", "-n 6"])
def test_a_limit_is_named(tmp_path: Path, limit: str) -> None:
    command = [*flagshim_command(), "run", "-o", str(tmp_path / "t.db"), "--", "true"]
    done = subprocess.run(
        ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command],
        capture_output=True, text=True, check=False, timeout=HANGS, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1
    assert "ulimit -n" in done.stderr
