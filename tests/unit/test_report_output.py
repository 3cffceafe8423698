"""What becomes of a report on its way out: terminals, pipes, full disks."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import click
import pytest

from tests.unit.reportrunner import process, run
from tests.unit.tracebuilder import OPEN, START, STILL_REFUSED, Trace, small


def on_terminal(columns: int, *arguments) -> str:
    """What a terminal of that width is sent."""
    import fcntl
    import struct
    import termios

    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    output = b""
    with process(*arguments, stdout=terminal, env=environment):
        os.close(terminal)
        while True:
            try:
                output += os.read(main, 65536)
            except OSError:  # EIO: nobody has the other side open
                break
    os.close(main)
    return click.unstyle(output.decode().replace("\r\n", "\n"))


def long_names(path) -> Path:
    trace = Trace(path)
    trace.session(command=json.dumps(["qemu", *["-device"] * 99]))
    for number in range(17):
        trace.event(
            time_ns=START + number,
            pid=4194304,
            program="qemu-system-x86_64-" + "p" * 99,
            syscall="open_by_handle_at",
            resolved="/\x1b\u202e" + f"/{'x' * number}\\" * 29 + "/end",
            **{**STILL_REFUSED, "errno": "ENAMETOOLONG"},
        )
    trace.blind_spot("io_uring", "u" * 200, 1)
    return trace.close()


@pytest.mark.parametrize("view", ["summary", "events", "paths", "programs"])
@pytest.mark.parametrize(("columns", "fits"), [(80, 80), (0, 80), (132, 132)])
def test_fits_the_terminal(tmp_path, view, columns, fits):
    text = on_terminal(columns, long_names(tmp_path / "t.db"), "--view", view)
    assert fits - 12 < max(map(len, text.splitlines())) <= fits
    assert "…" in text
    assert "/end" in text or view == "programs"
    assert not re.search(r"(?<!\\)(\\\\)*\\(x.?|u.{0,3})?…", text)


def test_narrow_terminal(tmp_path):
    for view in ("summary", "events", "paths"):
        assert "…" in on_terminal(5, long_names(tmp_path / f"{view}.db"), "--view", view)


def test_nothing_is_shortened_or_coloured_in_a_pipe(tmp_path):
    for view in ("summary", "events", "paths", "programs"):
        text = run(long_names(tmp_path / f"{view}.db"), "--view", view)
        assert "…" not in text
        assert "\x1b" not in text
    assert "-device " * 98 in run(tmp_path / "summary.db")


@pytest.mark.parametrize("format_", ["table", "json", "csv"])
def test_head_is_enough(tmp_path, format_):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.events([OPEN] * 10_007)
    arguments = (trace.close(), "--view", "events", "--format", format_)
    with process(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        command.stdout.readline()
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == -13  # SIGPIPE, as for cat


def test_full_disk(tmp_path):
    with (
        open("/dev/full", "w") as full,
        process(
            small(tmp_path / "t.db"), stdout=full, stderr=subprocess.PIPE, text=True
        ) as command,
    ):
        error = command.stderr.read()
    assert error == "flagshim: standard output: No space left on device; write it elsewhere\n"
    assert command.returncode == 1


def test_no_standard_output(tmp_path):
    path = small(tmp_path / "t.db")
    options = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": lambda: os.close(1)}
    with process(path, **options) as command:
        assert "standard output is closed" in command.stderr.read()


def test_damage_after_the_first_rows_is_said(tmp_path):
    trace = Trace(tmp_path / "t.db")
    trace.session()
    trace.event()
    trace.event(session=2, time_ns=START + 1)
    arguments = (trace.close(), "--view", "events")
    with process(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        output, error = command.communicate()
    assert len(output.splitlines()) == 3
    assert error.startswith("flagshim: ")
    assert "damaged" in error
    assert len(error.splitlines()) == 1
