"""What `pip install` brings: the wheel, in a virtual environment of its own."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from tests.support import HANGS, REPOSITORY, require
from tests.unit.tracebuilder import small

MAN = REPOSITORY / "docs" / "man"


def need(program: str, package: str) -> None:
    require("manuals", None if shutil.which(program) else f"no {program} ({package})")


# --- the man page -------------------------------------------------------------------------------


def test_man_page_is_that_of_the_commands() -> None:
    loader = SourceFileLoader("make_man", str(MAN / "make-man"))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        module = module_from_spec(spec_from_loader("make_man", loader))
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    assert (MAN / "man1" / "flagshim.1").read_text() == module.page(), "type: make man"


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("mandoc", ["mandoc", "-Tlint", "-Wwarning"]),
        ("man-db", ["man", "--warnings", "-E", "UTF-8", "-Tutf8", "-l"]),
        ("groff-base", ["groff", "-ww", "-z", "-man", "-K", "utf8", "-T", "utf8"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_man_page_is_clean(package: str, command: list[str]) -> None:
    need(command[0], package)
    page = str(MAN / "man1" / "flagshim.1")
    result = subprocess.run([*command, page], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "WARNING" not in result.stdout


# --- the wheel ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with flagshim in it, and nothing it does not need."""
    folder = tmp_path_factory.mktemp("installed")
    source, wheels, prefix = folder / "source", folder / "wheels", folder / "venv"
    files = subprocess.check_output(["git", "ls-files"], cwd=REPOSITORY, text=True).splitlines()
    for file in files:
        if (REPOSITORY / file).exists():
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / file, source / file, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", prefix], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([prefix / "bin" / "pip", "install", "-q", wheel], check=True)
    return prefix


def environment(prefix: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "PATH": f"{prefix}/bin:{os.environ['PATH']}",
        "XDG_DATA_DIRS": f"{prefix}/share:/usr/share",
    }


def said(prefix: Path, *command: str, **more: str) -> str:
    return subprocess.check_output(command, env={**environment(prefix), **more}, text=True, cwd="/")


def test_base_installation_is_small(prefix: Path) -> None:
    names = {path.name.split("-")[0] for path in prefix.glob("lib/*/site-packages/*.dist-info")}
    assert names <= {"flagshim", "click", "pyseccomp", "python_ptrace", "tabulate", "pip",
                     "setuptools"}  # fmt: skip
    assert said(prefix, "flagshim", "--version").startswith("flagshim, version ")
    assert said(prefix, "python", "-c", "import flagshim; print(flagshim.run)")


@pytest.mark.parametrize(
    ("option", "extra"), [("--parquet=x", "parquet"), ("--otlp=http://h", "otlp")]
)
def test_extras_are_asked_for(prefix: Path, tmp_path: Path, option: str, extra: str) -> None:
    result = subprocess.run(
        [prefix / "bin" / "flagshim", "export", small(tmp_path / "t.db"), option],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 125
    assert result.stderr.endswith(f"; pip install 'flagshim[{extra}]'\n")
    assert result.stderr.count("\n") == 1


def test_pytest_finds_the_plugin(prefix: Path) -> None:
    code = "from importlib.metadata import *; print(entry_points(group='pytest11'))"
    assert "flagshim.pytest_plugin" in said(prefix, "python", "-c", code)


def test_man_finds_the_page(prefix: Path) -> None:
    need("man", "man-db")
    assert said(prefix, "man", "-w", "flagshim").strip() == f"{prefix}/share/man/man1/flagshim.1"


def test_bash(prefix: Path) -> None:
    file = "/usr/share/bash-completion/bash_completion"
    require("manuals", None if os.path.exists(file) else "no bash-completion")
    script = f"""
        . {file}
        complete_line() {{
            COMP_LINE="$*"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            $(complete -p flagshim | sed 's/.*-F \\([^ ]*\\) .*/\\1/') flagshim "${{!#}}"
            echo "${{COMPREPLY[@]}}"
        }}
        _completion_loader flagshim
        complete_line flagshim re
        complete_line flagshim run --wh
        complete_line flagshim run --when a
        complete_line flagshim run -- flags
    """
    assert said(prefix, "bash", "-c", script).splitlines() == [
        "report", "--when", "always", "flagshim"
    ]  # fmt: skip


def test_fish(prefix: Path) -> None:
    need("fish", "fish")
    out = said(prefix, "fish", "-c", "complete -C 'flagshim rep'; complete -C 'flagshim run --wh'")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["report", "--when"]


def test_zsh(prefix: Path, tmp_path: Path) -> None:
    """In a terminal of its own: zsh completes nowhere else. ^X writes down what the line is."""
    need("zsh", "zsh")
    (tmp_path / ".zshrc").write_text(
        f"""
        fpath=({prefix}/share/zsh/site-functions $fpath)
        autoload -Uz compinit
        compinit -u -d $ZDOTDIR/dump
        write-down() {{ print -r -- $BUFFER >> $ZDOTDIR/lines; BUFFER= }}
        zle -N write-down
        bindkey '^X' write-down
        """
    )
    lines = tmp_path / "lines"
    ours, its = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-d", "-i"], stdin=its, stdout=its, stderr=its, start_new_session=True,
        env={**environment(prefix), "TERM": "dumb", "ZDOTDIR": str(tmp_path)},
    )  # fmt: skip
    os.close(its)
    shown = bytearray()

    def wait_for(ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HANGS
        while not ready():
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 0.05)[0]:
                shown.extend(os.read(ours, 4096))

    try:
        wait_for(lambda: b"\x1b[?2004h" in shown)  # it reads keys, not lines
        for typed, completed in (("flagshim rep", b"ort"), ("flagshim report --view eve", b"nts")):
            before = lines.read_text().count("\n") if lines.exists() else 0
            os.write(ours, typed.encode())
            wait_for(lambda typed=typed: shown.endswith(typed[-1:].encode()))
            shown.clear()
            os.write(ours, b"\t")
            wait_for(lambda completed=completed: completed in shown)
            os.write(ours, b"\x18")
            wait_for(
                lambda before=before: lines.exists() and lines.read_text().count("\n") > before
            )
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
    found = [line.rstrip() for line in lines.read_text().splitlines()]
    assert found == ["flagshim report", "flagshim report --view events"]
