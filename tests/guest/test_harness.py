"""The harness itself: it must not take a dead or a silent guest for a good one."""

import lzma
import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.tracee import has_ended
from tests.support import REPOSITORY, read_until

from . import cache
from .apt import Source, other_sources
from .cpio import Archive
from .image import Image
from .kernel import newest
from .machine import wait_until
from .packed import decompressed
from .vm import Guest, GuestResult, Outcome, boot, qemu_command


def pretend(script: str, timeout: float = 30) -> GuestResult:
    """Boot a shell script in the place of QEMU."""
    nothing = Path("/dev/null")
    return boot(
        Guest(
            Image("none", nothing, nothing),
            Path("/"),
            qemu=("sh", "-c", script, "qemu"),
            user=None,
            timeout=timeout,
        )
    )


def test_a_guest_that_reports_failure_is_not_dead() -> None:
    result = pretend("echo 'FLAGSHIM-STEP read fail 0/3 why'; echo FLAGSHIM-DONE 1")
    assert result.outcome is Outcome.REPORTED
    assert result.failed["read"].detail == "0/3 why"


def test_a_qemu_that_aborts_has_died() -> None:
    result = pretend("echo 'FLAGSHIM-STEP mount ok'; echo 'Assertion failed' >&2; kill -ABRT $$")
    assert result.outcome is Outcome.DIED
    assert result.exit_status == -6
    assert result.steps["mount"].ok
    assert "Assertion" in result.stderr


def test_a_silent_qemu_has_hung_and_is_gone_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    for seconds in (1, 3, 10):  # until it gets as far as that
        result = pretend(f"sleep 600 & echo $! $$ >{pids}; wait", timeout=seconds)
        assert result.outcome is Outcome.HUNG
        if pids.exists() and pids.read_text():
            break
    # Killed it is, but an orphan has yet to be scheduled to die, and to be reaped by init.
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 2
    wait_until(lambda: all(map(has_ended, left)), "they are gone")


def test_a_lost_step_is_a_failure() -> None:
    result = pretend("echo 'FLAGSHIM-STEP re[ 1.0] kernel'; echo FLAGSHIM-DONE 1")
    assert result.outcome is Outcome.REPORTED
    assert result.failed["console"].detail == "0 of 1 steps came through"


def test_a_kernel_that_panics_has_died(
    guest_image: Image, guest_share: Path, tmp_path: Path
) -> None:
    initrd = tmp_path / "empty.cpio"
    initrd.write_bytes(Archive().finish())
    result = boot(Guest(replace(guest_image, initrd=initrd), guest_share, user=None))
    assert result.outcome is Outcome.DIED, result.account
    assert "panic" in result.console


def test_a_machine_that_never_starts_has_hung(guest_image: Image, guest_share: Path) -> None:
    result = boot(Guest(guest_image, guest_share, extra=("-S",), timeout=3))
    assert result.outcome is Outcome.HUNG, result.account


def test_a_comma_in_the_folder_is_doubled_for_qemu() -> None:
    nothing = Path("/dev/null")
    command = qemu_command(Guest(Image("none", nothing, nothing), Path("/a,b"), user=None))
    assert "local,id=store,path=/a,,b,security_model=none" in command


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def build() -> None:
        with cache.built(tmp_path / "image") as unfinished:
            (unfinished / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_left_goes_with_the_next(tmp_path: Path) -> None:
    for name, age in (("old", 7200), ("going-on", 60)):
        (tmp_path / f".building-{name}").mkdir()
        os.utime(tmp_path / f".building-{name}", times=(time.time() - age,) * 2)
    with cache.built(tmp_path / "image"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"image", ".building-going-on"}


def test_the_first_of_two_builds_wins(tmp_path: Path) -> None:
    with cache.built(tmp_path / "image") as slow:
        (slow / "by").write_text("slow")
        with cache.built(tmp_path / "image") as quick:
            (quick / "by").write_text("quick")
    assert (tmp_path / "image/by").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


@pytest.mark.parametrize("looks", [True, False])
def test_a_build_shows_on_a_terminal_that_it_goes_on(tmp_path: Path, looks: bool) -> None:
    code = (
        "import sys, threading; from pathlib import Path; from tests.guest import cache;"
        "from flagshim.cli.output import Progress; Progress._FIRST_S = 0\n"
        "ticks, tick = threading.Semaphore(0), Progress._tick\n"
        "Progress._tick = lambda self: (tick(self), ticks.release())\n"
        "with cache.built(Path(sys.argv[1])):\n"
        "    assert not sys.stderr.isatty() or ticks.acquire(timeout=100)"
    )
    ours, theirs = pty.openpty() if looks else os.pipe()
    target = tmp_path / "image"
    with subprocess.Popen([sys.executable, "-c", code, target], stderr=theirs, cwd=REPOSITORY):
        os.close(theirs)
        said = read_until(ours, None).decode()
    os.close(ours)
    assert bool(re.search(rf"making {re.escape(str(target))}, once, \d+ s", said)) == looks
    assert said.endswith("\r\x1b[K" if looks else "")
    assert looks or not said
    assert target.is_dir()


def test_the_cache_is_open_to_qemus_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("FLAGSHIM_CACHE", str(closed / "cache"))
    with pytest.raises(FlagshimError, match="closed to other users"):
        cache.folder("kernel")


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = Archive()
    archive.folder("bin")
    archive.file("bin/tool", b"odd", 0o755)
    archive.file("init", b"")
    listed = subprocess.run(
        ["/bin/busybox", "cpio", "-t"], input=archive.finish(), capture_output=True, check=True
    )
    assert listed.stdout.split() == [b"bin", b"bin/tool", b"init"]


def test_what_follows_a_compressed_stream_is_ignored() -> None:
    assert decompressed(lzma.compress(b"kernel") + b"\x06\0\0\0") == b"kernel"
    assert decompressed(b"plain") == b"plain"


def test_the_newest_kernel_of_a_version_is_found() -> None:
    names = [
        "linux-image-6.1.0-9-amd64",
        "linux-image-6.1.0-56-amd64",
        "linux-image-6.1.0-57-cloud-amd64",
        "linux-image-6.1.0-58-amd64-dbg",
        "linux-image-6.12.117+deb13-amd64",
    ]
    assert newest("6.1", names) == "linux-image-6.1.0-56-amd64"
    assert newest("6.12", names) == "linux-image-6.12.117+deb13-amd64"
    assert newest("6", names) == "linux-image-6.12.117+deb13-amd64"
    assert newest("5", names) is None


def test_another_suite_comes_from_the_same_mirrors() -> None:
    mirror, security = "http://mirror.test/debian", "http://mirror.test/security"
    own = [
        Source(mirror, "bookworm", "main"),
        Source(mirror, "bookworm-updates", "main"),
        Source(mirror, "bookworm-backports", "main"),
        Source(security, "bookworm-security", "main"),
    ]
    assert other_sources(own, "bookworm", "trixie") == [
        Source(mirror, "trixie", "main"),
        Source(mirror, "trixie-updates", "main"),
        Source(security, "trixie-security", "main"),
    ]
    assert other_sources(own, "bookworm", "trixie-backports") == [
        Source(mirror, "trixie-backports", "main")
    ]


def test_another_user_may_read_what_readable_made(tmp_path: Path) -> None:
    (tmp_path / "private").touch(mode=0o600)
    cache.readable(tmp_path / "private")
    assert os.stat(tmp_path / "private").st_mode & 0o777 == 0o644
