"""Threads: thousands of them, one that differs from its siblings, and memory they share."""

import subprocess
import sys

import pytest

from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.ways import Way, attach, traced
from tests.processes import children
from tests.support import REPOSITORY, require, wait_until


def test_2003_threads_at_once(build: Build, way: Way, place: Place) -> None:
    """Each is there while each of them opens; conftest's SECONDS bound it."""
    shim = way([build("crowd"), "2003", str(place.file)])
    require("threads", "no 2003 threads here" if shim.status == 3 else None)
    assert (shim.status, shim.out) == (0, "opened 2003\n"), shim.err
    assert shim.events("count(*), count(DISTINCT tid)", "decision = 'cleared'") == [(2003, 2003)]


def test_fsuid_of_one_thread(build: Build, run: Runner, way: Way, place: Place) -> None:
    """Credentials are a thread's: its sibling, who owns the file, keeps the flag."""
    argv = [build("fsuid"), str(place.file)]
    natively = "other 0 1\nother 1 0\nfirst 0 1\nother 0 1\nfirst 0 1\n"
    assert run.native(argv, user=0).stdout == natively
    shim = way(argv, user=None)
    assert shim.out == natively.replace("other 1 0", "other 0 0")
    assert shim.events("decision, fsuid") == [
        ("kept", 0), ("cleared", 65534), ("kept", 0), ("kept", 0), ("kept", 0),
    ]  # fmt: skip


def test_open_how_that_another_thread_writes_to(
    build: Build, run: Runner, way: Way, place: Place
) -> None:
    """Nothing of ours is ever in it: what the other thread wrote stays."""
    argv = [build("race"), "other", str(place.file), "1009"]
    assert run.native(argv).stdout == "failed 1009 noatime 0 foreign 0\n"
    assert way(argv).out == "failed 0 noatime 0 foreign 0\n"


def test_flag_that_another_thread_turns_on_in_the_middle(
    build: Build, way: Way, place: Place
) -> None:
    """Not there when we look, there when the kernel does: refused, as it is natively."""
    shim = way([build("race"), "flag", str(place.file), "1009"])
    assert shim.status == 0
    assert shim.out.endswith(" noatime 0 foreign 0\n")


def test_left_in_the_middle_of_a_vfork(build: Build, run: Runner, place: Place) -> None:
    """The parent cannot stop, so nobody waits for it; it goes on as if nobody had been there."""
    process = subprocess.Popen(
        [build("odd"), "vfork", str(place.file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=NOBODY,
    )  # fmt: skip
    try:
        wait_until(lambda: children(process.pid))
        flagshim = attach(run, process.pid, "--for", "0.2")
        error = flagshim.communicate(timeout=SECONDS)[1]
        assert flagshim.returncode == 0, error
        assert not traced(process.pid)
        assert process.communicate("x", timeout=SECONDS)[0] == "errno 1\n"
    finally:
        process.kill()
        process.communicate()


KEPT = """
import sys
from flagshim.engines.command import command_for
from flagshim.engines.policy import Policy
from flagshim.engines.ptrace import PtraceEngine, filter_for
from flagshim.engines.roster import Roster
from flagshim.engines.stops import Stops
from flagshim.rules import BUILT_IN

class Sink:
    def record(self, event): pass
    def blind_spot(self, kind, program): print(kind, program)
    def flush(self): return True
    def flush_if_due(self): pass

policy = Policy([BUILT_IN])
roster = Roster()
engine = PtraceEngine(policy, Sink(), roster)
engine.run(command_for(sys.argv[1:], filter_for(policy), None), [], Stops())
print(len(engine.threads), len(engine.handler._processes), len(roster.tids()), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "program", [("awkward", "thread-exec"), ("killed", "31"), ("crowd", "101")]
)
def test_nothing_is_kept_of_what_has_ended(
    build: Build, place: Place, program: tuple[str, str]
) -> None:
    """An ID comes again some day, and is somebody else's; a VM runs for months."""
    name, argument = program
    result = subprocess.run(
        [sys.executable, "-c", KEPT, build(name), argument, str(place.file)],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip
    assert result.stderr == "0 0 0\n"
