import os

import pytest

from flagshim.openflags import CLEARABLE, access_mode, bits_of, flag_names, is_set, known_flag


def test_bits_are_those_of_this_machine() -> None:
    machine = os.uname().machine
    for name in ("O_CREAT", "O_NOATIME", "O_DIRECT", "O_DIRECTORY", "O_NOFOLLOW", "O_PATH",
                 "O_TMPFILE", "O_SYNC", "O_DSYNC", "O_CLOEXEC", "O_NONBLOCK"):  # fmt: skip
        assert bits_of(name, machine) == getattr(os, name), name


@pytest.mark.parametrize(
    ("flags", "machine", "names"),
    [
        (0, "x86_64", "O_RDONLY"),
        (0o1000000 | 1, "x86_64", "O_WRONLY|O_NOATIME"),
        (0o4010000, "x86_64", "O_RDONLY|O_SYNC"),
        (0o10000, "x86_64", "O_RDONLY|O_DSYNC"),
        (0o20200002, "x86_64", "O_RDWR|O_TMPFILE"),
        (0o200000, "x86_64", "O_RDONLY|O_DIRECTORY"),
        (0o200000, "aarch64", "O_RDONLY|O_DIRECT"),
        (0o40000, "aarch64", "O_RDONLY|O_DIRECTORY"),
        (1 << 33, "x86_64", "O_RDONLY|0x200000000"),
        (3, "x86_64", "O_ACCMODE"),
    ],
)
def test_flag_names(flags: int, machine: str, names: str) -> None:
    assert flag_names(flags, machine) == names


def test_o_sync_hides_o_dsync() -> None:
    assert is_set("O_SYNC", 0o4010000, "x86_64")
    assert not is_set("O_DSYNC", 0o4010000, "x86_64")


def test_access_mode() -> None:
    assert [access_mode(flags) for flags in (0, 1, 2, 3, os.O_CREAT | 1)] == [
        "r", "w", "rw", "-", "w",
    ]  # fmt: skip


def test_known_flags() -> None:
    assert all(known_flag(name) for name in CLEARABLE)
    assert known_flag("O_RDWR")
    assert not known_flag("O_FOO")
