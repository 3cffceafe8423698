"""Lines for people who may not be there to read them."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagshim import errors, status
from flagshim.errors import say_in_passing, say_in_syslog


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of a pipe at which one can read what we write to descriptor 2."""
    monkeypatch.setattr(status, "_listener", None)
    ours = os.dup(2)
    read_end, write_end = os.pipe()
    os.dup2(write_end, 2)
    yield read_end
    os.dup2(ours, 2)
    for fd in (ours, read_end, write_end):
        os.close(fd)


def fill(fd: int) -> None:
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    os.set_blocking(fd, True)


def test_in_passing(stderr: int) -> None:
    say_in_passing("a\nb")
    os.set_blocking(stderr, False)
    assert os.read(stderr, 99) == b"flagshim: a\\nb\n"


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_in_passing_to_a_full_pipe(stderr: int, seconds: float) -> None:
    fill(2)
    say_in_passing("lost", seconds)
    os.set_blocking(stderr, False)
    assert b"lost" not in os.read(stderr, 1 << 20)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        monkeypatch.setattr(errors, "_LOG", str(tmp_path / "log"))
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
    monkeypatch.setattr(errors, "_LOG", str(tmp_path / "absent"))
    say_in_syslog("text")
