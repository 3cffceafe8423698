"""Tracers under flagshim: gdb, strace and LeakSanitizer, exempt by --except."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.conftest import Build, Place, Runner
from tests.kernel.ways import Way
from tests.support import require, rows

LEAKY = 23
"""What LeakSanitizer ends a leaky program with."""


@pytest.fixture(scope="session")
def leaky(build: Build) -> str:
    """A program with LeakSanitizer that opens a file with O_NOATIME, and leaks memory."""
    program = build("leaky", "-fsanitize=leak")
    status = subprocess.run([program, "/"], capture_output=True, check=False).returncode
    require("lsan", None if status == LEAKY else f"LeakSanitizer finds nothing here ({status})")
    return program


class Tracer:
    """A shell line that has a tracer at work, and what of its output shows that it was."""

    def __init__(self, name: str, line: str, works: str) -> None:
        self.name = name
        self.line = line
        self.works = works


TRACERS = [
    Tracer(
        "gdb",
        "gdb -q -nx -batch -ex 'break open' -ex run -ex 'print 1000+9' -ex continue"
        " --args $odd open $file",
        r"Breakpoint 1, .*\$1 = 1009\n.*exited normally",
    ),
    Tracer("strace", "strace -e trace=openat $odd open $file", r"openat\(.*O_RDONLY\|O_NOATIME"),
    Tracer("leaky", "$leaky $file", "1009 byte.s. leaked"),
]


@pytest.mark.parametrize("tracer", TRACERS, ids=lambda tracer: tracer.name)
def test_tracer_inside(
    build: Build, run: Runner, way: Way, place: Place, leaky: str, tracer: Tracer
) -> None:
    """From a shell script: the tracer works as it does natively, and what follows is served."""
    if tracer.name != "leaky":
        found = shutil.which(tracer.name)
        require(tracer.name, None if found else f"no {tracer.name}")
    script = f"exec 2>&1; {tracer.line}; echo status $?; $odd open $file"
    names = {"odd": build("odd"), "file": str(place.file), "leaky": leaky}
    argv = ["sh", "-c", script]
    environment = {**os.environ, **names}
    name = Path(leaky).name if tracer.name == "leaky" else tracer.name

    natively = run.native(argv, env=environment).stdout
    assert re.search(tracer.works, natively, re.S), natively
    assert natively.endswith("errno 1\n")
    status = re.findall(r"^status (\d+)$", natively, re.M)

    shim = way(argv, "--except", name, env=environment)
    assert re.search(tracer.works, shim.out, re.S), shim.out
    assert re.findall(r"^status (\d+)$", shim.out, re.M) == status
    assert shim.out.endswith("noatime 0\n"), "the shell's own child is served"
    assert shim.events("decision") == [("cleared",)]
    # notify counts calls that it lets go on: that of the program which gdb and strace start.
    spots = [("exempt", name if not way.holds_by_listener or tracer.name == "leaky" else "odd", 1)]
    assert rows(shim.trace, "SELECT kind, program, count FROM blind_spot") == spots


def test_exempt_program_and_the_flag(build: Build, way: Way, place: Place) -> None:
    """ENOSYS: its filter cannot be taken off, and nobody answers it. attach has put none in.

    Under notify somebody does, and lets the call go on.
    """
    odd = Path(build("odd"))
    shim = way(["sh", "-c", '"$@"; exit 0', "sh", str(odd), "open", str(place.file)],
               "--except", odd.name)  # fmt: skip
    as_natively = way.name == "attach" or way.holds_by_listener
    assert shim.out == ("errno 1\n" if as_natively else "errno 38\n")
    assert shim.events() == []


@pytest.mark.parametrize("debugger", ["gdb", "strace"])
def test_tracer_from_outside(build: Build, run: Runner, place: Place, debugger: str) -> None:
    """A difference that stays: a thread has one tracer. The program goes on all the same."""
    require(debugger, None if shutil.which(debugger) else f"no {debugger}")
    line = {"gdb": "gdb -q -nx -batch -p", "strace": "strace -p"}[debugger]
    script = f'read x <"$0" & pid=$!; {line} $pid 2>&1; echo >"$0"; wait $pid; echo $?'
    fifo = place.path / "fifo"
    os.mkfifo(fifo)
    shim = run.supervised(["sh", "-c", script, str(fifo)], "--except", debugger, user=None)
    assert "Operation not permitted" in shim.out
    assert shim.out.endswith("\n0\n")


def test_flagshim_inside(build: Build, run: Runner, place: Place) -> None:
    """It is a tracer like others: exempt, it serves its own program."""
    inner = run.command([build("odd"), "open", str(place.file)])
    served = run.last()
    shim = run.supervised(inner, "--except", Path(sys.executable).resolve().name, user=None)
    assert (shim.status, shim.out) == (0, "noatime 0\n"), shim.err
    assert served.events("decision") == [("cleared",)]
