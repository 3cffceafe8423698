"""What becomes of a report on its way out: terminals, pipes, full disks."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest

from tests.unit.collector import collecting
from tests.unit.reportrunner import ROOT, process, run
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


# --- colour and progress ----------------------------------------------------------------

IMPATIENT = """
import sys
from flagshim.cli import main, output
from flagshim.trace import reader
output.Progress._FIRST_S = output.Progress._EVERY_S = 0
reader._STEPS = 1009
main()
"""


def drained(descriptor: int) -> str:
    text = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while part := os.read(descriptor, 65536):
            text += part
    os.close(descriptor)
    return text.decode().replace("\r\n", "\n")


def terminals(*arguments: object, out: bool, err: bool, **environment: str) -> tuple[str, str]:
    """What is written on standard output and on stderr, each a terminal or a pipe."""
    ends = [pty.openpty() if wanted else os.pipe() for wanted in (out, err)]
    command = [sys.executable, "-c", IMPATIENT, *map(os.fspath, arguments)]
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    variables |= {"TERM": "xterm", "COLUMNS": "200", **environment}
    with subprocess.Popen(command, stdout=ends[0][1], stderr=ends[1][1], cwd=ROOT, env=variables):
        for _, theirs in ends:
            os.close(theirs)
        with ThreadPoolExecutor() as readers:  # at once: a terminal holds four kilobytes
            out_text, err_text = readers.map(drained, [ours for ours, _ in ends])
    return out_text, err_text


@pytest.mark.parametrize("view", ["summary", "events", "paths"])
def test_colour_on_a_terminal_and_the_same_words_without(tmp_path, view):
    arguments = ("report", small(tmp_path / "t.db"), "--view", view)
    plain, _ = terminals(*arguments, out=False, err=False)
    assert "\x1b" not in plain
    dressed, _ = terminals(*arguments, out=True, err=False)
    assert "\x1b[31m" in dressed
    assert "\x1b[32m" in dressed
    assert click.unstyle(dressed) == plain
    always, _ = terminals(*arguments, "--color", "always", out=False, err=False, NO_COLOR="1")
    assert always == dressed
    for options, variables in (
        (("--color", "never"), {}),
        ((), {"NO_COLOR": "1"}),
        ((), {"TERM": "dumb"}),
    ):
        shown, _ = terminals(*arguments, *options, out=True, err=False, **variables)
        assert shown == plain
    assert terminals(*arguments, out=True, err=False, NO_COLOR="")[0] == dressed


def test_colour_of_doctor():
    for options, coloured in (((), False), (("--color", "always"), True)):
        shown, _ = terminals("doctor", *options, out=False, err=False)
        assert ("\x1b[32mworks\x1b[0m" in re.sub(" +", "", shown)) == coloured
    assert "\x1b" not in terminals("doctor", out=True, err=False, NO_COLOR="1")[0]


def some_thousand(path: Path) -> Path:
    trace = Trace(path)
    trace.session()
    trace.events(OPEN._replace(time_ns=START + n, resolved=f"/{n}") for n in range(10_007))
    return trace.close()


@pytest.mark.parametrize("format_", ["table", "json", "html", "junit"])
def test_progress_is_for_who_looks(tmp_path, format_):
    trace = some_thousand(tmp_path / "t.db")
    arguments = ("report", trace, "--format", format_)
    out, err = terminals(*arguments, out=False, err=True)
    assert re.search(rf"\r\x1b\[Kflagshim: reading {re.escape(str(trace))}, \d+ s", err)
    assert err.endswith("\r\x1b[K")
    assert "\x1b" not in out
    for variables in ({}, {"TERM": "dumb"}):
        plain, err = terminals(*arguments, out=False, err=bool(variables), **variables)
        assert err == ""
        if format_ != "html":  # which says when it was made
            assert plain == out


@pytest.mark.parametrize("view", ["summary", "events"])
def test_progress_makes_room_for_the_output(tmp_path, view):
    main, terminal = pty.openpty()
    command = [sys.executable, "-c", IMPATIENT, "report", some_thousand(tmp_path / "t.db"),
               "--view", view, "--limit", "7"]  # fmt: skip
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, cwd=ROOT):
        os.close(terminal)
        text = drained(main)
    before, after = text.rsplit("\r\x1b[K", 1)
    assert "flagshim: reading" in before
    assert "\n" not in before
    assert "flagshim: reading" not in after
    assert after.count("\n") > 7


@pytest.mark.parametrize(
    ("arguments", "doing"),
    [
        (["export", "TRACE", "--parquet", "out.parquet"], "exporting"),
        (["export", "TRACE", "--otlp", "URL"], "sending"),
        (["merge", "-o", "out.db", "TRACE"], "merging"),
    ],
)
def test_progress_of_what_hands_a_trace_on(tmp_path, arguments, doing):
    trace = some_thousand(tmp_path / "t.db")
    with collecting() as collector:
        known = {"TRACE": str(trace), "URL": collector.url}
        words = [known.get(word, word.replace("out", f"{tmp_path}/out")) for word in arguments]
        _, err = terminals(*words, out=False, err=True)
        assert re.search(rf"\r\x1b\[Kflagshim: {doing} {re.escape(str(trace))}, \d+ s", err)
        shown, last = err.rsplit("\r\x1b[K", 1)
        assert "\n" not in shown
        assert last.count("\n") == 1
        _, plain = terminals(*words, out=False, err=False)
        assert "\x1b" not in plain
        assert plain.count("\n") == 1


def test_progress_makes_room_for_a_baseline(tmp_path):
    main, terminal = pty.openpty()
    command = [sys.executable, "-c", IMPATIENT, "baseline", some_thousand(tmp_path / "t.db")]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, cwd=ROOT):
        os.close(terminal)
        before, after = drained(main).rsplit("\r\x1b[K", 1)
    assert "flagshim: reading" in before
    assert "\n" not in before
    assert after.startswith("# ")


def test_progress_of_what_is_read_for_a_gate(tmp_path):
    trace = some_thousand(tmp_path / "t.db")
    out, err = terminals("report", trace, "--fail-on", "rewrites", out=False, err=True)
    assert err.rsplit("\r\x1b[K", 1)[1] == "flagshim: gate failed: rewrites > 0 (10007)\n"
    assert "gate" not in out
