"""Real programs that ask for O_NOATIME, as a user who does not own the files."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagshim.probes import reason_notify_unavailable
from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.support import require, rows, wait_until


@pytest.fixture(params=["ptrace", "notify"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    """Run commands natively, and under flagshim with each engine in turn."""
    if request.param == "notify":
        require("notify", reason_notify_unavailable())
    runner = Runner(tmp_path, request.param)
    yield runner
    assert set(rows(runner.trace, "SELECT engine FROM session")) == {(request.param,)}


def test_dd(run: Runner, place: Place) -> None:
    argv = ["dd", "iflag=noatime", f"if={place.file}", "status=none"]
    assert run.native(argv).returncode != 0
    shim = run.supervised(argv)
    assert (shim.status, shim.out) == (0, "content\n")
    assert shim.events("syscall, decision") == [("openat", "cleared")]


def test_dd_standard_input(run: Runner, place: Place) -> None:
    argv = ["dd", "iflag=noatime", "status=none"]
    with open(place.file) as stdin:
        assert run.native(argv, stdin=stdin).returncode != 0
    with open(place.file) as stdin:
        shim = run.supervised(argv, stdin=stdin)
    assert (shim.status, shim.out) == (0, "content\n")
    assert shim.events("syscall, decision, resolved") == [("fcntl", "cleared", str(place.file))]


def test_tar(run: Runner, place: Place) -> None:
    argv = ["tar", "--atime-preserve=system", "-C", str(place.path), "-cf", "-", "file"]
    natively = run.native(argv)
    assert natively.returncode != 0
    assert "Operation not permitted" in natively.stderr
    shim = run.supervised(argv)
    assert shim.status == 0, shim.err
    assert "content\n" in shim.out
    assert ("openat", "cleared") in shim.events("syscall, decision")


def test_rsync(run: Runner, place: Place) -> None:
    target = place.path / "target"
    target.mkdir()
    os.chown(target, NOBODY, NOBODY)
    argv = ["rsync", "--open-noatime", str(place.file), f"{target}/"]
    require("rsync", None if shutil.which("rsync") else "no rsync")
    assert run.native(argv).returncode == 23
    shim = run.supervised(argv)
    assert shim.status == 0, shim.err
    assert (target / "file").read_text() == "content\n"


def test_client_of_fuse_overlayfs(fuse_layers: tuple[list[str], Path], run: Runner) -> None:
    """With squash_to_uid the client owns every file it sees, so the kernel lets its O_NOATIME
    pass, and the server, who does not own the lower file, hands it to openat2
    (containers/fuse-overlayfs#477).
    """
    argv, mount = fuse_layers
    lower = mount.parent / "lower" / "file"
    for path in (lower.parent, lower):  # not the server's, which is root without CAP_FOWNER
        os.chown(path, 1, 1)
    server_argv = ["setpriv", "--bounding-set", "-fowner", "--inh-caps", "-fowner", *argv]

    def read_through(prefix: list[str]) -> subprocess.CompletedProcess[str]:
        server = subprocess.Popen(
            [*prefix, *server_argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(mount.is_mount)
            return run.native(["dd", "iflag=noatime", f"if={mount}/file", "status=none"])
        finally:
            subprocess.run(["umount", mount], check=True)
            server.wait(timeout=SECONDS)

    assert "Operation not permitted" in read_through([]).stderr
    command = run.command([], user=None)
    assert read_through(command[: command.index("--") + 1]).stdout == "lower\n"
    events = rows(run.trace, "SELECT syscall, decision, errno, resolved FROM event")
    assert ("openat2", "cleared", None, str(lower)) in events


def test_server_and_client_of_a_fuse_filesystem_under_one_supervisor(
    fuse_layers: tuple[list[str], Path], run: Runner, build: Build
) -> None:
    """The supervisor may not wait for a filesystem whose server waits for the supervisor."""
    argv, mount = fuse_layers
    lower = mount.parent / "lower" / "file"
    for path in (lower.parent, lower):
        os.chown(path, 1, 1)
    script = (
        'mount=$1; shift; setpriv --bounding-set -fowner --inh-caps -fowner "$@" & '
        "until mountpoint -q $mount; do :; done;"
        f"setpriv --reuid 65534 --clear-groups {build('storm')} 3 1 997 $mount/file; echo $?;"
        "umount $mount; wait"
    )
    shim = run.supervised(["sh", "-c", script, "sh", str(mount), *argv], user=None)
    assert shim.out == "0\n", shim.err
    # The notify engine asks the filesystem, with O_NONBLOCK, before it lets the client do so.
    clients = f"NOT flags_before & {os.O_NONBLOCK} GROUP BY program"
    assert dict(shim.events("program, count(*)", clients)) == {
        "fuse-overlayfs": 997,
        "storm": 997,
    }
