import errno
import os
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.rules import (
    BUILT_IN,
    Rule,
    When,
    decide,
    flag_bits,
    fold_path,
    glob_pattern,
    load_rules,
)

NOATIME, DIRECT, SYNC, DSYNC = 0o1000000, 0o40000, 0o4010000, 0o10000

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="bits of x86-64")


def test_built_in_rule_waits_for_the_refusal() -> None:
    verdict = decide([BUILT_IN], NOATIME | os.O_CLOEXEC, b"/x")
    assert verdict.clear == 0
    assert verdict.clear_on == ((errno.EPERM, NOATIME, "noatime"),)
    assert verdict.matched


def test_always_clears_at_once() -> None:
    verdict = decide([Rule(name="r", when=When.ALWAYS)], NOATIME, None)
    assert (verdict.clear, verdict.clear_on, verdict.rule) == (NOATIME, (), "r")


def test_first_rule_for_a_flag_decides() -> None:
    store = Rule(name="store", when=When.ALWAYS, paths=("/nix/store/**",))
    rest = Rule(name="rest")
    assert decide([store, rest], NOATIME, b"/nix/store/x").rule == "store"
    assert decide([store, rest], NOATIME, b"/home/x").clear_on[0][2] == "rest"


def test_rules_for_several_flags() -> None:
    both = Rule(clear=("O_NOATIME", "O_DIRECT"))
    verdict = decide([both], NOATIME | DIRECT, b"/x")
    assert {(entry[0], entry[1]) for entry in verdict.clear_on} == {
        (errno.EPERM, NOATIME),
        (errno.EINVAL, DIRECT),
    }
    assert not decide([both], os.O_CLOEXEC, b"/x").matched


def test_o_sync_contains_o_dsync() -> None:
    dsync = Rule(clear=("O_DSYNC",), when=When.ALWAYS)
    assert decide([dsync], SYNC, b"/x").clear == 0
    assert decide([dsync], DSYNC, b"/x").clear == DSYNC
    assert decide([Rule(clear=("O_SYNC",), when=When.ALWAYS)], DSYNC, b"/x").clear == 0


def test_flag_bits_are_single() -> None:
    assert flag_bits([BUILT_IN]) == [NOATIME]
    assert flag_bits([Rule(clear=("O_SYNC",), when=When.ALWAYS)]) == [0o10000, 0o4000000]


def test_unknown_path_matches_no_glob() -> None:
    assert not decide([Rule(paths=("/**",))], NOATIME, None).matched


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("/nix/store/**", b"/nix/store/a/b", True),
        ("/nix/store/**", b"/nix/storex", False),
        ("/nix/*/b", b"/nix/a/b", True),
        ("/nix/*/b", b"/nix/a/a/b", False),
        ("/a?c", b"/abc", True),
        ("/a?c", b"/a/c", False),
        ("/[ab]", b"/b", True),
        ("/[!ab]", b"/c", True),
        ("/[!ab]", b"/a", False),
        ("/[]]", b"/]", True),
        ("/[a-c]x", b"/bx", True),
        ("/a.b", b"/axb", False),
        ("/**", b"/new\nline", True),
        ("/é*", "/été".encode(), True),
        ("/\udcff", b"/\xff", True),
        ("**/x", b"/a/b/x", True),
    ],
)
def test_globs(glob: str, path: bytes, matches: bool) -> None:
    assert bool(glob_pattern(glob).fullmatch(os.fsdecode(path))) is matches


@pytest.mark.parametrize(
    ("path", "folded"),
    [(b"/a//b/./c/..", b"/a/b"), (b"//a", b"/a"), (b"/..", b"/"), (b"/a/", b"/a")],
)
def test_fold_path(path: bytes, folded: bytes) -> None:
    assert fold_path(path) == folded


@pytest.mark.parametrize(
    "flag", ["O_CREAT", "O_EXCL", "O_TRUNC", "O_PATH", "O_RDONLY", "O_RDWR", "O_ACCMODE",
             "O_TMPFILE", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_APPEND", "O_NONBLOCK"],
)  # fmt: skip
def test_flags_that_must_stay(flag: str) -> None:
    with pytest.raises(FlagshimError, match=f"--clear: without {flag} a call would mean") as error:
        Rule(clear=(flag,), when=When.ALWAYS)
    assert "O_NOATIME" in error.value.hint


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    return file


def test_rule_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [[rule]]
        name = "store"
        clear = ["O_NOATIME", "O_DIRECT"]
        when = "always"
        paths = ["/nix/store/**"]
        programs = ["qemu-system-*"]

        [[rule]]
        """,
    )
    first, second = load_rules(file)
    assert first == Rule(
        "store", ("O_NOATIME", "O_DIRECT"), When.ALWAYS, ("/nix/store/**",), ("qemu-system-*",)
    )
    assert second == Rule("rule-2")
    assert first.matches_program(b"qemu-system-x86_64")
    assert not first.matches_program(b"dd")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule]]\nname = oops", "(at line 2"),
        ("", "no rule"),
        ("x = 1", "unknown key 'x'"),
        ("rule = 3", "no rule"),
        ("rule = [3]", "rule 1: not a table"),
        ('[[rule]]\npath = ["/x"]', "rule 1: unknown key 'path'"),
        ('[[rule]]\n[[rule]]\nwhen = "never"', "rule 2, when: 'never'"),
        ("[[rule]]\nwhen = [1]", "rule 1, when: [1]"),
        ('[[rule]]\nclear = "O_NOATIME"', "rule 1, clear: not a list"),
        ("[[rule]]\nclear = []", "clear: names no flag"),
        ('[[rule]]\nclear = ["O_FOO"]', "clear: 'O_FOO' is not a flag"),
        ('[[rule]]\nname = "n"\nclear = ["O_CREAT"]', "rule 1 (n), clear: without O_CREAT"),
        ('[[rule]]\nclear = ["O_SYNC"]', "clear: the kernel never refuses O_SYNC"),
        ('[[rule]]\npaths = ["/a["]', "paths: glob '/a[': has a [ without its ]"),
        ('[[rule]]\npaths = [""]', "paths: glob '': is empty"),
        ('[[rule]]\npaths = ["[z-a]"]', "bad character range"),
        ('[[rule]]\npaths = ["store/*"]', "never matches"),
        ('[[rule]]\nprograms = ["/usr/bin/dd"]', "programs: glob '/usr/bin/dd' never matches"),
        ("[[rule]]\nname = 3", "name: not a string"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(FlagshimError) as error:
        load_rules(file)
    assert said in error.value.message
    assert str(file) in error.value.message
    assert error.value.hint
    assert "\n" not in str(error.value)


def test_rule_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FlagshimError, match="--rules"):
            load_rules(path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(FlagshimError, match="not UTF-8"):
        load_rules(binary)
