"""Service managers that watch a program by its PID: runit's runsv, and supervisord.

Each is started for one service in a folder of its own; the machine's are not touched.
"""

import configparser
import contextlib
import functools
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from . import cache
from .apt import Apt, own_sources
from .machine import SECONDS, wait_until


class Manager(Protocol):
    """One service, and who manages it."""

    restarts_at_success: bool
    """Whether it is started again when it has ended with exit status 0."""

    def pid(self) -> int | None:
        """PID of the service as its manager knows it; None if it is down."""

    def start(self) -> None:
        """Have it started."""

    def stop(self) -> None:
        """Have it ended with SIGTERM, and wait for it."""

    def restart(self) -> None:
        """Have it stopped and started."""

    def ends(self) -> list[str]:
        """How it ended each time, as the manager saw it: "exit 0", "signal 9"."""


class Runit:
    """A service under runsv(8), with a `finish` that writes down how it ended."""

    restarts_at_success = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ends = folder / "ends"

    def pid(self) -> int | None:
        text = (self.folder / "supervise/pid").read_text().strip()
        return int(text) if text else None

    def start(self) -> None:
        self._sv("up")

    def stop(self) -> None:
        self._sv("-w", str(int(SECONDS)), "down")

    def restart(self) -> None:
        self._sv("-w", str(int(SECONDS)), "restart")

    def ends(self) -> list[str]:
        if not self._ends.exists():
            return []
        pairs = (line.split() for line in self._ends.read_text().splitlines())
        # What finish gets: the exit status, or -1; and the low byte of the wait status.
        return [f"signal {low}" if code == "-1" else f"exit {code}" for code, low in pairs]

    def _sv(self, *words: str) -> None:
        subprocess.run([runit() / "sv", *words, self.folder], check=True, capture_output=True)


@contextlib.contextmanager
def runit_service(command: Sequence[str], folder: Path) -> Iterator[Manager]:
    """Have runsv start a command."""
    _script(folder / "run", f"exec {shlex.join(command)}")
    _script(folder / "finish", 'echo "$1 $2" >>ends')
    process = subprocess.Popen([runit() / "runsv", folder], start_new_session=True)
    manager = Runit(folder)
    try:
        wait_until((folder / "supervise/pid").exists, "runsv is at work")
        yield manager
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            manager.stop()
        process.terminate()
        process.wait(SECONDS)


class Supervisord:
    """A service under supervisord, asked by supervisorctl."""

    restarts_at_success = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pid(self) -> int | None:
        return int(self._ctl("pid", "vm", check=False)) or None  # it fails for what is down

    def start(self) -> None:
        self._ctl("start", "vm")

    def stop(self) -> None:
        self._ctl("stop", "vm")

    def restart(self) -> None:
        self._ctl("restart", "vm")

    def ends(self) -> list[str]:
        how = r" (?:stopped|exited): vm \((exit) status (\d+)|terminated by (SIG\w+)"
        found = re.findall(how, (self._folder / "log").read_text())
        return [f"exit {code}" if by_itself else f"signal {signal.Signals[name]:d}"
                for by_itself, code, name in found]  # fmt: skip

    def _ctl(self, *words: str, check: bool = True) -> str:
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", self._folder / "conf"]
        return subprocess.run(
            [*command, *words], check=check, capture_output=True, text=True, timeout=SECONDS
        ).stdout


@contextlib.contextmanager
def supervisord_service(command: Sequence[str], folder: Path) -> Iterator[Manager]:
    """Have supervisord start a command."""
    written = configparser.RawConfigParser()
    written.read_dict({
        "supervisord": {"nodaemon": "true", "logfile": folder / "log", "pidfile": folder / "pid"},
        "unix_http_server": {"file": folder / "sock"},
        "supervisorctl": {"serverurl": f"unix://{folder}/sock"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
        "program:vm": {
            "command": shlex.join(command).replace("%", "%%"), "autorestart": "unexpected",
            "startsecs": 0, "stopwaitsecs": int(SECONDS),
        },
    })  # fmt: skip
    with open(folder / "conf", "w") as file:
        written.write(file)
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", folder / "conf"],
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    manager = Supervisord(folder)
    try:
        wait_until((folder / "sock").exists, "supervisord is at work")
        yield manager
    finally:
        process.terminate()  # ends the service first
        process.wait(SECONDS)


@functools.cache
def runit() -> Path:
    """The folder of runit's programs: the machine's, or Debian's package in the cache.

    Installed it would set up services of its own.
    """
    if found := shutil.which("runsv"):
        return Path(found).parent
    target = cache.folder() / "runit"
    if not target.is_dir():
        with cache.built(target) as unfinished, tempfile.TemporaryDirectory() as scratch:
            Apt.prepare(own_sources(), Path(scratch, "apt")).unpack("runit", unfinished)
    return target / "usr/bin"


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
