"""Lines for people who may not be there to read them."""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flagshim import saying, status
from flagshim.saying import say_in_passing, say_in_syslog


@contextmanager
def stderr() -> Iterator[int]:
    """Give the end of a pipe at which one can read what is written to descriptor 2 meanwhile."""
    ours = os.dup(2)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.dup2(write_end, 2)
    try:
        yield read_end
    finally:
        os.dup2(ours, 2)
        for fd in (ours, read_end, write_end):
            os.close(fd)


@pytest.fixture(autouse=True)
def no_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_listener", None)


def fill(fd: int) -> None:
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    os.set_blocking(fd, True)


def test_in_passing() -> None:
    with stderr() as read_end:
        say_in_passing("a\nb")
        said = os.read(read_end, 99)
    assert said == b"flagshim: a\\nb\n"


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_in_passing_to_a_full_pipe(seconds: float) -> None:
    with stderr() as read_end:
        fill(2)
        say_in_passing("lost", seconds)
        said = os.read(read_end, 1 << 20)
    assert b"lost" not in said


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        monkeypatch.setattr(saying, "_LOG", str(tmp_path / "log"))
        log.bind(str(tmp_path / "log"))
        yield log


def test_in_syslog(log: socket.socket) -> None:
    say_in_syslog("a\nb")
    line = log.recv(999)
    assert line.startswith(b"<28>")  # daemon.warning
    assert line.endswith(f" flagshim[{os.getpid()}]: a\\nb".encode())


def test_logger_that_hangs(log: socket.socket) -> None:
    """syslog(3) would wait until it reads."""
    for _ in range(1009):
        say_in_syslog("text")
    log.setblocking(False)
    received = 0
    with contextlib.suppress(BlockingIOError):
        while log.recv(999):
            received += 1
    assert received < 1009


def test_no_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saying, "_LOG", str(tmp_path / "absent"))
    say_in_syslog("text")
