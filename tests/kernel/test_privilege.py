"""Who may look into a program, and whom it may become: set-user-ID, not dumpable, execute-only."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Run, Runner
from tests.kernel.test_calls import check_rescued, results
from tests.kernel.ways import Way
from tests.support import REPOSITORY, flagshim_command, require, rows


@pytest.fixture
def as_nobody(place: Place):
    """Run commands under a flagshim that is an ordinary user's."""
    folder = place.path / "traces"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    trace = folder / "trace.db"

    def supervised(argv: list[str], *options: str, **kwargs: object) -> Run:
        command = [*flagshim_command(), "run", "-o", str(trace), *options, "--", *argv]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False,
            cwd=REPOSITORY, user=NOBODY, group=NOBODY, extra_groups=[], **kwargs,
        )  # fmt: skip
        return Run(result.returncode, result.stdout, result.stderr, trace)

    return supervised


IN_MEMORY = {"openat2", "openat2-readonly"}
"""Calls whose flags are where only root may look, if the program is not dumpable."""


def test_not_dumpable_program_of_an_ordinary_user(
    build: Build, run: Runner, place: Place, as_nobody
) -> None:
    """What is in registers is served, what is in memory is not, and the trace says both."""
    os.chown(place.file, 1, 1)
    hidden = [build("calls", "-DHIDDEN"), str(place.file)]
    natively = results(run.native(hidden).stdout)
    shim = as_nobody(hidden)
    assert shim.status == 0, shim.err
    found = results(shim.out)
    assert {name: found.pop(name) for name in IN_MEMORY} == {
        name: natively.pop(name) for name in IN_MEMORY
    }
    check_rescued(run.native(hidden).stdout, shim.out, leave_out=IN_MEMORY)
    # Nothing is foreseen of what cannot be looked at: the kernel is asked each time.
    assert set(shim.events("path, resolved, decision, reason, tries, owner_uid, fsuid")) == {
        (None, None, "cleared", "refused by the kernel", 2, None, NOBODY)
    }
    assert rows(shim.trace, "SELECT kind, count FROM blind_spot") == [
        ("unreadable memory", 2 + 1)  # openat2 with O_PATH is among them
    ]


def test_not_dumpable_program_under_root(build: Build, run: Runner, way: Way, place: Place) -> None:
    hidden = [build("calls", "-DHIDDEN"), str(place.file)]
    shim = way(hidden)
    check_rescued(run.native(hidden).stdout, shim.out)
    assert {resolved for (resolved,) in shim.events("resolved")} == {str(place.file)}
    assert rows(shim.trace, "SELECT kind FROM blind_spot") == []


def test_execute_only_program_of_an_ordinary_user(build: Build, place: Place, as_nobody) -> None:
    """One that may be run but not read is not dumpable from its first instruction."""
    program = place.path / "secret"
    shutil.copy(build("odd"), program)
    program.chmod(0o711)
    shim = as_nobody([str(program), "open", str(place.file)])
    assert (shim.status, shim.out) == (0, "noatime 0\n")
    assert shim.events("program, path, decision, errno") == [("secret", None, "cleared", None)]


@pytest.mark.parametrize("when", ["refused", "always"])
def test_flag_on_a_descriptor_that_cannot_be_looked_at(
    build: Build, place: Place, as_nobody, when: str
) -> None:
    """It may be on already, and shared: only the kernel knows, and it is asked."""
    program = place.path / "secret"
    shutil.copy(build("odd"), program)
    program.chmod(0o711)
    fd = os.open(place.file, os.O_RDONLY | os.O_NOATIME)
    try:
        shim = as_nobody([str(program), "setfl", "-", str(fd)], "--when", when, pass_fds=[fd])
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME
    finally:
        os.close(fd)
    assert shim.out == "noatime 1\n", shim.err
    assert shim.events("syscall, decision") == [("fcntl", "kept")]


@pytest.fixture
def helper(build: Build, run: Runner, place: Place) -> Iterator[Path]:
    """A set-user-ID program of root's that prints its euid, or opens a file with O_NOATIME."""
    program = place.path / "helper"
    shutil.copy(build("odd"), program)
    program.chmod(0o4755)
    natively = run.native([str(program), "open", str(place.file)]).stdout
    require("setuid", None if natively == "noatime 1\n" else "a nosuid filesystem")
    yield program
    program.unlink()


def test_setuid_helper_under_root(helper: Path, way: Way, place: Place) -> None:
    """It has its privilege, and as the owner it keeps its flag."""
    shim = way([str(helper), "open", str(place.file)])
    if way.name == "inject":  # into a process of nobody's, which may not do without no_new_privs
        assert (shim.out, shim.events("decision")) == ("noatime 0\n", [("cleared",)])
        return
    assert (shim.status, shim.out) == (0, "noatime 1\n")
    assert shim.events("decision, fsuid") == [("kept", 0)]


def test_setuid_helper_of_an_ordinary_user(helper: Path, place: Place, as_nobody) -> None:
    """It runs, as the caller: no_new_privs. A difference that stays; README, Limits."""
    shim = as_nobody([str(helper), "open", str(place.file)])
    assert (shim.status, shim.out) == (0, "noatime 0\n")
    assert shim.events("decision, fsuid") == [("cleared", NOBODY)]
