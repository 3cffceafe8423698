import ast
import random
import re
import time

import pytest

from flagshim.reports import flags
from flagshim.reports.text import (
    command_line,
    duration,
    exit_status,
    local_clock,
    local_second,
    printable,
    shorten,
    utc,
)
from tests.unit.tracebuilder import O_CLOEXEC, O_NOATIME, START


@pytest.fixture(autouse=True)
def somewhere_east(monkeypatch):
    monkeypatch.setenv("TZ", "XXX-5:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/nix/store/a b", "/nix/store/a b"),
        ("é漢😀…", "é漢😀…"),
        ("", ""),
        (None, "(unknown)"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b[31m\x00\x07\x7f", r"\x1b[31m\x00\x07\x7f"),
        ("\\n", r"\\n"),
        ("\x85\x9b", r"\u0085\u009b"),
        (b"\x85\x9b", r"\x85\x9b"),
        ("\u202eexe\u2066\u200b\ufeff\u00ad\u00a0", r"\u202eexe\u2066\u200b\ufeff\u00ad\u00a0"),
        ("\U000e0001\u0378\ue000\uffff", r"\U000e0001\u0378\ue000\uffff"),
        (b"ok\xff\xc3\xa9\xc3", r"ok\xffé\xc3"),
        ("\udcff\ud800", r"\xff\ud800"),
        ("  a b ", r"\x20\x20a b\x20"),
        ("   ", r"\x20\x20\x20"),
    ],
)
def test_printable(name, shown):
    assert printable(name) == shown
    assert shown.isprintable()


def test_printable_can_be_undone():
    dice = random.Random(1)
    alphabet = [
        b"\\",
        b"x",
        b"n",
        b" ",
        b"\n",
        b"\xff",
        b"\xc3\xa9",
        b"\xc2\x85",
        "\u202e".encode(),
    ]
    for _ in range(1009):
        name = b"".join(dice.choices(alphabet, k=dice.randrange(9)))
        shown = printable(name)
        # The escapes are Python's, but for \x80 to \xff, which are bytes and not characters.
        literal = "".join(
            f"\\udc{unit[2:]}" if unit.startswith(("\\x8", "\\xf")) else unit
            for unit in re.findall(r"\\x..|\\.|.", shown)
        )
        assert ast.literal_eval(f"'{literal}'").encode(errors="surrogateescape") == name


def test_shorten_in_the_middle():
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 10) == "abcd…ghijk"
    assert shorten("abcdefghijk", 1) == "…"
    assert shorten("abcdefghijk" * 99, None) == "abcdefghijk" * 99


def test_shorten_keeps_escape_sequences_whole():
    shown = printable("\x1b\u202e\U000e0001\\\n" * 5)
    units = {"\\x1b", "\\u202e", "\\U000e0001", "\\\\", "\\n"}
    for width in range(1, len(shown)):
        short = shorten(shown, width)
        assert len(short) <= width
        head, tail = short.split("…")
        assert shown.startswith(head)
        assert shown.endswith(tail)
        for part in (head, tail):
            assert set(re.findall(r"\\\\|\\[^\\]+", part)) <= units


def test_command_line():
    assert command_line(["sh", "-c", "echo 'a'"]) == """sh -c 'echo '"'"'a'"'"''"""
    assert command_line(["a\x1b[0m", b"\xff"]) == r"'a\x1b[0m' '\xff'"


def test_exit_status():
    assert [exit_status(status) for status in (0, 3, None, -9, -11, -60)] == [
        "0", "3", "not known", "killed by SIGKILL", "killed by SIGSEGV", "killed by signal 60",
    ]  # fmt: skip


def test_times():
    assert utc(START + 12_345_678) == "2023-11-14T22:13:20.012345678Z"
    assert utc(-1) == "1969-12-31T23:59:59.999999999Z"
    assert local_second(START) == "2023-11-15 03:43:20 +0530"
    assert local_clock(START + 12_999_999) == "03:43:20.012"
    assert [duration(ns) for ns in (-5, 1_234_567_890, 61 * 10**9, 7_261 * 10**9)] == [
        "0.000 s", "1.235 s", "1 min 01 s", "2 h 01 min",
    ]  # fmt: skip


def test_flags_by_machine():
    both = O_NOATIME | O_CLOEXEC
    assert flags.change(both, O_CLOEXEC, "x86_64") == "-O_NOATIME"
    assert flags.change(both, both, "x86_64") == "O_NOATIME"
    assert flags.change(both | 0o40000, 0o40000, "x86_64") == "-O_NOATIME -O_CLOEXEC O_DIRECT"
    assert flags.change(0o4010000, 0o10000, "x86_64") == "-O_SYNC O_DSYNC"
    assert flags.change(both | 0o200000, both, "aarch64") == "-O_DIRECT O_NOATIME"
    assert flags.cleared(both, O_CLOEXEC, "x86_64") == ("O_NOATIME",)
    assert flags.cleared(0o3, 0o1, "vax") == ("0x2",)
    assert flags.cleared(0o3, 0o3, "vax") == ()
    assert flags.names(0x1000, "vax") == "0x1000"
