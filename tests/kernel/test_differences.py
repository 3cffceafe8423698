"""Differences that remain, so that we hear of it when one goes, or another comes."""

import subprocess

from tests.kernel.conftest import SECONDS, Build, Place, Runner
from tests.kernel.ways import Way, as_exec
from tests.support import REPOSITORY, require, rows

VARIES = {
    "Tgid", "Pid", "PPid", "NStgid", "NSpid", "NSpgid", "NSsid", "SigQ", "VmPeak", "VmSize",
    "FDSize", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmData", "VmStk", "VmPTE",
    "Cpus_allowed", "Cpus_allowed_list", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches",
}  # fmt: skip
"""Fields of proc(5), status, that differ from one run to the next."""


def status(out: str) -> dict[str, str]:
    fields = dict(line.split(":", 1) for line in out.splitlines())
    return {name: value.strip() for name, value in fields.items() if name not in VARIES}


def test_what_a_program_can_see(run: Runner, way: Way) -> None:
    """proc(5), status: a tracer (not notify's), a filter; no_new_privs is not set by root."""
    argv = ["cat", "/proc/self/status"]
    natively, seen = status(run.native(argv, user=0).stdout), status(way(argv, user=None).out)
    assert natively["TracerPid"] == "0"
    assert (int(seen.pop("TracerPid")) > 0) is not way.holds_by_listener
    assert natively.pop("TracerPid") == "0"
    filters = ("2", "1") if way.name != "attach" else ("0", "0")
    assert (seen.pop("Seccomp"), seen.pop("Seccomp_filters")) == filters
    assert (natively.pop("Seccomp"), natively.pop("Seccomp_filters")) == ("0", "0")
    assert seen == natively


def test_strict_mode_of_seccomp(build: Build, run: Runner, way: Way) -> None:
    """A thread with a filter cannot change to strict mode (seccomp(2), EINVAL)."""
    argv = [build("odd"), "strict", "-"]
    assert run.native(argv).stdout == "strict 0\n"
    assert way(argv).out == ("strict 0\n" if way.name == "attach" else "strict n\n")


def test_filter_of_the_program_with_a_listener(
    build: Build, run: Runner, way: Way, place: Place
) -> None:
    """RET_USER_NOTIF goes before RET_TRACE (seccomp(2)): what its listener lets go on, we miss."""
    argv = [build("notify"), str(place.file)]
    alone = run.native(argv)
    require("seccomp", "no seccomp listener here" if alone.returncode == 77 else None)
    assert alone.stdout == "errno 1 seen 1\n"
    shim = way(argv)
    if way.name == "attach":  # it stops before any filter is asked
        assert shim.out == "errno 0 seen 1\n"
    elif way.holds_by_listener:  # of which there can be one only (seccomp(2), EBUSY)
        assert (shim.out, shim.status) == ("", 77)
    else:
        assert shim.out == alone.stdout
        assert shim.events() == []
    if way.name not in ("attach", "inject"):
        assert rows(shim.trace, "SELECT kind FROM blind_spot") == [("seccomp listener",)]


def test_ignored_signal_interrupts(build: Build, run: Runner, way: Way) -> None:
    """A tracer is told of it all the same, and epoll_wait(2) does not restart (signal(7)).

    The notify engine is no tracer.
    """
    argv = [build("odd"), "ignored", "-"]
    assert run.native(argv).stdout == "epoll_wait 0\n"
    assert way(argv).out == ("epoll_wait 0\n" if way.holds_by_listener else "epoll_wait -4\n")


def test_exec_as_pid_1(run: Runner) -> None:
    """The helper would be a child of CMD, and end with it: said so, and CMD has not run."""
    command = as_exec(run, ["echo", "ran"], user=None)
    result = subprocess.run(
        ["unshare", "-pf", "--mount-proc", "--kill-child", *command],
        capture_output=True, text=True, check=False, timeout=SECONDS, cwd=REPOSITORY,
    )  # fmt: skip
    require("userns", result.stderr if result.stderr.startswith("unshare") else None)
    assert (result.returncode, result.stdout) == (125, "")
    assert "PID 1" in result.stderr
    assert "flagshim run" in result.stderr
