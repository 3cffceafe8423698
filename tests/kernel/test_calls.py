"""Every call that carries the flag, by every way into the kernel."""

import subprocess
from collections.abc import Set as AbstractSet

import pytest

from tests.kernel.conftest import Build, Place, Runner
from tests.kernel.ways import Way

WAYS = {
    "dynamic": (),
    "static": ("-static",),
    "i386": ("-m32",),
    "i386-static": ("-m32", "-static"),
    "int80": ("-DINT80",),
}
O_NOATIME = 0o1000000


@pytest.fixture(params=WAYS)
def calls(request: pytest.FixtureRequest, build: Build) -> str:
    return build("calls", *WAYS[request.param])


def results(out: str) -> dict[str, tuple[int, int, str]]:
    lines = (line.split() for line in out.splitlines())
    found = {name: (int(result), int(flags, 8), state) for name, result, flags, state in lines}
    assert len(found) >= 7, out
    return found


def check_rescued(native: str, supervised: str, leave_out: AbstractSet[str] = frozenset()) -> None:
    before, after = results(native), results(supervised)
    assert before.keys() == after.keys()
    for name in after.keys() - leave_out:
        result, flags, state = after[name]
        assert state == "whole", name
        if name == "openat2-path":
            assert result == -22, "openat2 refuses O_PATH|O_NOATIME, and is to go on doing so"
        elif name == "openat-path":
            assert (result >= 0, flags) == (True, 0o10000000)
        else:
            assert before[name][0] == -1, f"{name} is refused natively"
            assert result >= 0, name
            assert not flags & O_NOATIME, name


def test_refusals_foreseen(calls: str, run: Runner, place: Place) -> None:
    native = run.native([calls, str(place.file)]).stdout
    shim = run.supervised([calls, str(place.file)])
    check_rescued(native, shim.out)
    names = [name for name in results(shim.out) if "path" not in name]
    assert shim.events("tries, decision, reason, errno, owner_uid, fsuid") == [
        (1, "cleared", "owner is not fsuid", None, 0, 65534)
    ] * len(names)
    flags = shim.events("flags_before & 0x40000 != 0, flags_after & 0x40000")
    assert flags == [(1, 0)] * len(names)


def test_refusals_by_the_kernel(calls: str, run: Runner, place: Place) -> None:
    """A path that means something else to the supervisor is not predicted but tried."""
    path = "/proc/self/cwd/file"
    native = run.native([calls, path], cwd=place.path).stdout
    with_cwd = ["sh", "-c", 'cd "$0" && exec "$@"', str(place.path), calls, path]
    shim = run.supervised(with_cwd)
    check_rescued(native, shim.out)
    opens = shim.events("tries, reason, resolved", "syscall <> 'fcntl'")
    assert set(opens) == {(2, "refused by the kernel", str(place.file))}


def test_owner_keeps_the_flag(calls: str, run: Runner, place: Place) -> None:
    shim = run.supervised([calls, str(place.file)], user=None)
    for name, (result, flags, state) in results(shim.out).items():
        if "path" not in name:
            assert (result >= 0, state) == (True, "whole")
            if not name.startswith("openat2"):  # F_GETFL of the native ABI shows them all
                assert flags & O_NOATIME, name
    assert {row[0] for row in shim.events("decision")} == {"kept"}


def test_without_libc(build: Build, run: Runner, place: Place) -> None:
    nolibc = build("nolibc", "-nostdlib", "-static")
    assert run.native([nolibc, str(place.file)]).returncode == 1
    shim = run.supervised([nolibc, str(place.file)])
    assert shim.status == 0
    assert shim.events("syscall, decision") == [("open", "cleared")]


def test_always_clears_for_owners_too(build: Build, run: Runner, place: Place) -> None:
    shim = run.supervised([build("calls"), str(place.file)], "--when", "always", user=None)
    for name, (result, flags, _) in results(shim.out).items():
        if "path" not in name:
            assert (result >= 0, flags & O_NOATIME) == (True, 0), name
    assert set(shim.events("decision, reason")) == {("cleared", "rule says always")}


def test_setfl_leaves_a_flag_that_is_already_on(run: Runner, place: Place) -> None:
    """Clearing it would take it off the description for everybody who shares it."""
    code = (
        "import fcntl, os; fd = os.open(os.sys.argv[1], os.O_RDONLY | os.O_NOATIME);"
        "os.setuid(65534);"
        "fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NOATIME | os.O_NONBLOCK);"
        "print(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME))"
    )
    for options in ((), ("--when", "always", "--path", "/nowhere")):
        shim = run.supervised(
            ["/usr/bin/python3", "-c", code, str(place.file)], *options, user=None
        )
        assert shim.out == "True\n", shim.err
        assert shim.events("syscall") == [("openat",)]


@pytest.mark.parametrize("mode", ["fork", "scm"])
def test_flag_on_a_description_that_is_shared(
    build: Build, run: Runner, way: Way, place: Place, mode: str
) -> None:
    """The owner's O_NOATIME survives F_SETFL of whoever got the descriptor, by fork or socket."""
    argv = [build("sharing"), mode, str(place.file)]
    both, noatime, nonblock = 0o1004000, O_NOATIME, 0o4000
    natively = "".join(
        f"set {flags:o} {error}\nhas {left:o}\n"
        for flags, error, left in (
            (both, 0, both), (noatime, 0, noatime), (nonblock, 0, nonblock), (noatime, 1, nonblock),
        )
    )  # fmt: skip
    assert run.native(argv, user=0).stdout == natively
    shim = way(argv, user=None)
    served = natively.replace(f"set {noatime:o} 1\nhas {nonblock:o}", f"set {noatime:o} 0\nhas 0")
    assert shim.out == served
    assert shim.events("syscall, decision, fsuid") == [
        ("openat", "kept", 0),
        ("fcntl", "cleared", 65534),
    ]


def test_path_rule_leaves_other_paths(build: Build, run: Runner, place: Place) -> None:
    nolibc = build("nolibc", "-nostdlib", "-static")
    shim = run.supervised([nolibc, str(place.file)], "--path", "/nix/store/**")
    assert shim.status == 1
    assert shim.events("decision, reason, errno, resolved") == [
        ("kept", "no rule matches", "EPERM", str(place.file))
    ]
    assert run.supervised([nolibc, str(place.file)], "--path", f"{place.path}/**").status == 0


def test_program_rule(build: Build, run: Runner, place: Place) -> None:
    nolibc = build("nolibc", "-nostdlib", "-static")
    rules = place.path / "rules.toml"
    rules.write_text('[[rule]]\nprograms = ["nolibc*"]\n')
    assert run.supervised([nolibc, str(place.file)], "--rules", str(rules)).status == 0
    rules.write_text('[[rule]]\nprograms = ["qemu-*"]\n')
    assert run.supervised([nolibc, str(place.file)], "--rules", str(rules)).status == 1


def test_append_only_stays_refused_and_is_not_called_rescued(run: Runner, place: Place) -> None:
    if subprocess.run(["chattr", "+a", place.file], check=False, capture_output=True).returncode:
        pytest.skip("no append-only attribute on this filesystem")
    try:
        # An append-only file opened for plain writing is EPERM too, O_NOATIME or not.
        code = "import os; os.open(os.sys.argv[1], os.O_WRONLY | os.O_NOATIME)"
        argv = ["/usr/bin/python3", "-c", code, str(place.file)]
        subprocess.run(["chattr", "-a", place.file], check=True)
        place.file.chmod(0o666)
        subprocess.run(["chattr", "+a", place.file], check=True)
        shim = run.supervised(argv)
        assert "PermissionError: [Errno 1]" in shim.err
        assert shim.events("decision, errno") == [("cleared", "EPERM")]
        assert "1 failed all the same" in shim.err
    finally:
        subprocess.run(["chattr", "-a", place.file], check=True)


def test_truncation_happens_once_rescued(run: Runner, place: Place) -> None:
    place.file.chmod(0o666)
    code = "import os; os.open(os.sys.argv[1], os.O_WRONLY | os.O_TRUNC | os.O_NOATIME)"
    argv = ["/usr/bin/python3", "-c", code, str(place.file)]
    run.native(argv)
    assert place.file.stat().st_size == 8, "a refused open truncates nothing"
    run.supervised(argv)
    assert place.file.stat().st_size == 0
