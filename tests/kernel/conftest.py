"""Programs compiled for the tests, and running things with and without flagshim."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flagshim.probes import reason_notify_unavailable
from tests.kernel.asked import Asked
from tests.support import HANGS, REPOSITORY, flagshim_command, require, rows

if TYPE_CHECKING:
    from tests.kernel.ways import Way

PROGRAMS = Path(__file__).parent / "programs"
NOBODY = 65534
SECONDS = HANGS


@dataclass(frozen=True)
class Place:
    """A folder that everybody may reach, with a file that only root owns."""

    path: Path
    file: Path


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A world-reachable folder, and a file that the test's ordinary user does not own."""
    require("ptrace", None if os.geteuid() == 0 else "needs root to make files others do not own")
    path = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    path.chmod(0o755)
    file = path / "file"
    file.write_text("content\n")
    file.chmod(0o644)
    yield Place(path, file)
    shutil.rmtree(path)


@pytest.fixture
def folder(place: Place) -> Path:
    """A folder in which anybody may write."""
    folder = place.path / "anybodys"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


Build = Callable[..., str]


@pytest.fixture(scope="session")
def build() -> Iterator[Build]:
    """build(name, *gcc_flags) compiles programs/NAME.c where everybody may run it."""
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    folder.chmod(0o755)

    def compile_(name: str, *flags: str) -> str:
        target = folder / "".join((name, *flags)).replace("-", "_").replace("/", "_")
        if not target.exists():
            source = PROGRAMS / f"{name}.c"
            command = ["gcc", "-O1", "-pthread", "-o", str(target), str(source), *flags]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode and "-m32" in flags:
                require("i386", f"gcc -m32: {result.stderr.splitlines()[0]}")
            assert result.returncode == 0, result.stderr
        return str(target)

    yield compile_
    shutil.rmtree(folder)


@dataclass
class Run:
    """What a supervised command left."""

    status: int
    out: str
    err: str
    trace: Path

    def events(self, columns: str = "*", where: str = "1") -> list[tuple]:
        return rows(self.trace, f"SELECT {columns} FROM event WHERE {where} ORDER BY time_ns, id")

    def session(self, columns: str) -> tuple:
        return rows(self.trace, f"SELECT {columns} FROM session ORDER BY id DESC LIMIT 1")[0]


class Runner:
    """Runs commands natively and under flagshim, as nobody unless told otherwise."""

    def __init__(self, folder: Path, engine: str | None = None) -> None:
        """Run commands.

        Args:
            folder: for traces.
            engine: as --engine has it; None to leave it to the options of each command.
        """
        self._folder = folder
        self.engine = engine
        self._count = 0

    def command(self, argv: list[str], *options: str, user: str | None = "nobody") -> list[str]:
        self._count += 1
        self.trace = self._folder / f"trace{self._count}.db"
        how = ["--engine", self.engine] if self.engine else []
        how += ["-o", str(self.trace)]
        how += ["-u", user] if user else []
        return [*flagshim_command(), "run", *how, *options, "--", *argv]

    def supervised(
        self, argv: list[str], *options: str, user: str | None = "nobody", **kwargs: object
    ) -> Run:
        command = self.command(argv, *options, user=user)
        kwargs.setdefault("cwd", REPOSITORY)
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, **kwargs
        )
        return Run(result.returncode, result.stdout, result.stderr, self.trace)

    def last(self) -> Run:
        """The trace of the last command that was made, however it was run."""
        return Run(0, "", "", self.trace)

    def native(self, argv: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        kwargs.setdefault("user", NOBODY)
        kwargs.setdefault("cwd", REPOSITORY)
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=SECONDS, check=False, **kwargs
        )


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Run commands natively, and under flagshim."""
    return Runner(tmp_path)


_TRACING = ["run", "exec", "attach", "inject"]
_LISTENING = ["run notify", "exec notify"]


@pytest.fixture(params=_TRACING + _LISTENING)
def way(request: pytest.FixtureRequest, run: Runner, place: Place) -> "Way":
    """Run commands under flagshim by each of its commands and engines in turn."""
    return _way(request, run, place)


@pytest.fixture(params=_TRACING)
def tracing_way(request: pytest.FixtureRequest, run: Runner, place: Place) -> "Way":
    """The same where a test is about what only a tracer does."""
    return _way(request, run, place)


@pytest.fixture(params=_LISTENING)
def listening_way(request: pytest.FixtureRequest, run: Runner, place: Place) -> "Way":
    """The same where a test is about what only the notify engine does."""
    return _way(request, run, place)


def _way(request: pytest.FixtureRequest, run: Runner, place: Place) -> "Way":
    from tests.kernel.ways import Way

    way = Way(request.param, run, place.path)
    if way.holds_by_listener:
        require("notify", reason_notify_unavailable())
    return way


@pytest.fixture
def asked(place: Place) -> Iterator[Asked]:
    """A program of nobody's that waits to be told to open root's file."""
    program = Asked(place.file)
    yield program
    program.process.communicate(timeout=SECONDS)


@pytest.fixture(scope="session", autouse=True)
def can_trace() -> None:
    """Everything here traces; say once why it cannot."""
    probe = subprocess.run(
        [sys.executable, "-m", "flagshim", "run", "-o", "/dev/null/x", "--", "true"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=SECONDS,
    )  # fmt: skip
    assert "Traceback" not in probe.stderr, probe.stderr


@pytest.fixture
def fuse_layers(place: Place) -> Iterator[tuple[list[str], Path]]:
    """How to serve a FUSE filesystem whose server hands O_NOATIME on, and where it is mounted."""
    reason = None if os.path.exists("/dev/fuse") else "no /dev/fuse"
    if not reason and not shutil.which("fuse-overlayfs"):
        reason = "no fuse-overlayfs"
    require("fuse", reason)
    for name in ("lower", "upper", "work", "merged"):
        (place.path / name).mkdir()
        os.chown(place.path / name, NOBODY, NOBODY)
    lower = place.path / "lower" / "file"
    lower.write_text("lower\n")
    os.chown(place.path / "lower", 0, 0)
    layers = f"lowerdir={place.path}/lower,upperdir={place.path}/upper,workdir={place.path}/work"
    mount = place.path / "merged"
    # In the foreground; root opens the FUSE device, so that the server may be anybody.
    yield (
        ["fuse-overlayfs", "-f", "-o", f"{layers},squash_to_uid={NOBODY},allow_other", str(mount)],
        mount,
    )
    for entry in Path("/proc").iterdir():  # what a test that failed has left of them
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.fsencode(mount) in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
