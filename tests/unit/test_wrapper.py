import os
import subprocess
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.wrapper import wrapped_by, write_wrapper
from tests.support import HANGS, REPOSITORY, flagshim_command

ODD = ["plain", "two words", "quo'te\"", "$HOME `x`", "-o", "--", "", "new\nline"]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "the program"
    path.write_text('#!/bin/sh\nprintf "%s|" "$@"; echo $$\n')
    path.chmod(0o755)
    return path


def test_arguments_pid_and_status_go_through(program: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    write_wrapper(str(program), wrapper, ["-o", str(tmp_path / "t.db")], replace=False)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [wrapper, *ODD], stdout=subprocess.PIPE, text=True, env=environment, cwd="/"
    )
    assert process.communicate(timeout=HANGS)[0] == "|".join(ODD) + f"|{process.pid}\n"
    assert process.returncode == 0


@pytest.mark.parametrize("question", ["--help", "-help", "--version", "-version"])
def test_a_lone_question_is_not_supervised(program: Path, tmp_path: Path, question: str) -> None:
    """Who asks for the version at every start should not wait for flagshim's start."""
    wrapper, trace = tmp_path / "wrapper", tmp_path / "t.db"
    write_wrapper(str(program), wrapper, ["-o", str(trace)], replace=False)
    process = subprocess.Popen([wrapper, question], stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=HANGS)[0] == f"{question}|{process.pid}\n"
    assert not trace.exists()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([wrapper, question, "more"], check=True, env=environment)
    assert trace.exists()


def test_wrapper_of_a_wrapper_is_refused(program: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    write_wrapper(str(program), wrapper, [], replace=False)
    assert wrapped_by(wrapper) == str(program)
    assert wrapped_by(program) is None
    with pytest.raises(FlagshimError, match="a wrapper already, of") as error:
        write_wrapper(str(wrapper), tmp_path / "second", [], replace=False)
    assert str(program) in error.value.hint


def test_nothing_is_overwritten_unasked(program: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(FlagshimError, match="exists") as error:
        write_wrapper(str(program), file, [], replace=False)
    assert "-f" in error.value.hint
    assert file.read_text() == "mine"
    write_wrapper(str(program), file, [], replace=True)
    assert wrapped_by(file) == str(program)
    with pytest.raises(FlagshimError, match="is the program itself"):
        write_wrapper(str(program), program, [], replace=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "the program"], "no temporary file is left"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-program", "-o", "x"], "no-such-program: not found"),
        (["true"], "Missing option '-o'"),
        (["true", "-o", "/"], "/: a directory"),
        (["true", "-o", "/no/such/folder/x"], "/no/such/folder/x: No such file"),
        (["true", "-o", "x", "--clear", "O_CREAT"], "without O_CREAT"),
        (["true", "-o", "x", "--rules", "/no/such.toml"], "/no/such.toml: No such file"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = subprocess.run(
        [*flagshim_command(), "wrap", *arguments], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.returncode == 125
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []
