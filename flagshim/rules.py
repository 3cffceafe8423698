"""Rules: which flags to clear, when, on which paths, in which programs."""

import errno
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from flagshim.errors import FlagshimError
from flagshim.openflags import CLEARABLE, bits_of, is_set, known_flag

MACHINE = os.uname().machine


class When(StrEnum):
    """Under which condition a rule clears its flags."""

    REFUSED = "refused"
    """Only where the kernel refuses, or would refuse, the call for that flag."""
    ALWAYS = "always"
    """Wherever the flag is given, as a patched program would."""


@dataclass(frozen=True)
class Rule:
    """One rule. `paths` and `programs` are globs; an empty tuple matches everything."""

    name: str = "noatime"
    clear: tuple[str, ...] = ("O_NOATIME",)
    when: When = When.REFUSED
    paths: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    """Where it was written, for messages: "rules.toml, rule 2 (noatime)"; empty: options."""

    def __post_init__(self) -> None:
        """Refuse what can never be right.

        Raises:
            FlagshimError: naming the rule, the key and what would be accepted.
        """
        if not self.clear:
            raise self._wrong("clear", "names no flag", 'give at least one, as in ["O_NOATIME"]')
        for name in self.clear:
            self._check_flag(name)
        for glob in self.paths:
            self._compile("paths", glob)
            if not glob.startswith(("/", "**")):
                hint = "paths are compared in full: begin with / or **"
                raise self._wrong("paths", f"glob {glob!r} never matches", hint)
        for glob in self.programs:
            self._compile("programs", glob)
            if "/" in glob:
                raise self._wrong("programs", f"glob {glob!r} never matches", _BASE_NAME)

    def _check_flag(self, name: str) -> None:
        accepted = ", ".join(CLEARABLE)
        if not known_flag(name):
            raise self._wrong("clear", f"{name!r} is not a flag of open(2)", f"one of {accepted}")
        if name not in CLEARABLE:
            hint = f"only these can be cleared: {accepted}"
            raise self._wrong("clear", f"without {name} a call would mean something else", hint)
        if self.when is When.REFUSED and CLEARABLE[name].refusal is None:
            hint = 'ask for it with when = "always" (--when always)'
            raise self._wrong("clear", f"the kernel never refuses {name}", hint)

    def _compile(self, key: str, glob: str) -> re.Pattern[str]:
        try:
            return glob_pattern(glob)
        except ValueError as error:
            raise self._wrong(key, f"glob {glob!r}: {error}", "see Rules in the README") from None

    def _wrong(self, key: str, cause: str, hint: str) -> FlagshimError:
        where = f"{self.origin}, {key}" if self.origin else _OPTION[key]
        return FlagshimError(f"{where}: {cause}", hint)

    @cached_property
    def path_patterns(self) -> tuple[re.Pattern[str], ...]:
        """`paths`, compiled."""
        return tuple(glob_pattern(glob) for glob in self.paths)

    def matches_program(self, program: bytes) -> bool:
        """Tell whether the rule is for a program of that base name."""
        return not self.programs or _is_one_of(self.programs, program)

    def matches_path(self, path: bytes | None) -> bool:
        """Tell whether the rule is for a path; one that is not known matches no glob."""
        if not self.path_patterns:
            return True
        if path is None:
            return False
        name = os.fsdecode(path)
        return any(pattern.fullmatch(name) for pattern in self.path_patterns)


_OPTION = {"clear": "--clear", "paths": "--path", "programs": "programs"}

BUILT_IN = Rule()

_BASE_NAME = "programs are compared by base name"


@dataclass(frozen=True)
class Exemption:
    """Programs that are not to be traced at all: globs of base names."""

    programs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what can never be right.

        Raises:
            FlagshimError: naming the glob and what is wrong with it.
        """
        for glob in self.programs:
            try:
                glob_pattern(glob)
            except ValueError as error:
                cause = f"--except: glob {glob!r}: {error}"
                raise FlagshimError(cause, "see Rules in the README") from None
            if "/" in glob:
                raise FlagshimError(f"--except: glob {glob!r} never matches", _BASE_NAME)

    def covers(self, names: Iterable[bytes]) -> bool:
        """Tell whether a program that has these names is exempt."""
        return any(_is_one_of(self.programs, name) for name in names)


NONE_EXEMPT = Exemption()


def _is_one_of(globs: Iterable[str], program: bytes) -> bool:
    name = os.fsdecode(program)
    return any(glob_pattern(glob).fullmatch(name) for glob in globs)


class Verdict(NamedTuple):
    """What is to happen to the flags of one call."""

    clear: int
    """Bits to take off before the kernel sees them."""
    clear_on: tuple[tuple[int, int, str], ...]
    """(errno, bits, rule): to take off if the kernel refuses the call with that errno."""
    rule: str | None
    """Names of the rules that answer for `clear`, joined by commas."""
    matched: bool
    """Whether any rule is for this call at all."""


def decide(rules: Sequence[Rule], flags: int, path: bytes | None) -> Verdict:
    """Decide what the rules of a program say of one call; the first rule for a flag decides.

    Args:
        rules: those that match the program, in order.
        flags: open flags as the program gave them, on this machine's architecture.
        path: absolute, folded by `fold_path`; None where it is not known.
    """
    clear = handled = 0
    clear_on: list[tuple[int, int, str]] = []
    names: list[str] = []
    for rule in rules:
        wanted = [name for name in rule.clear if is_set(name, flags, MACHINE)]
        if not wanted or not rule.matches_path(path):
            continue
        for name in wanted:
            bits = bits_of(name, MACHINE)
            if handled & bits == bits:
                continue
            handled |= bits
            refusal = CLEARABLE[name].refusal
            if rule.when is When.REFUSED and refusal is not None:
                clear_on.append((refusal, bits, rule.name))
            else:
                clear |= bits
                names.append(rule.name)
    return Verdict(clear, tuple(clear_on), _joined(names), bool(handled))


def _joined(names: Iterable[str]) -> str | None:
    return ",".join(dict.fromkeys(names)) or None


def flag_bits(rules: Iterable[Rule]) -> list[int]:
    """Return every single bit that a call must carry one of to be of interest."""
    union = 0
    for rule in rules:
        for name in rule.clear:
            union |= bits_of(name, MACHINE)
    return [1 << n for n in range(union.bit_length()) if union >> n & 1]


def noatime_refusal(errno_: int, bits: int) -> bool:
    """Tell whether an entry of `Verdict.clear_on` is the one that `Credentials` can foresee."""
    return errno_ == errno.EPERM and bits == bits_of("O_NOATIME", MACHINE)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Compile a glob: ? and * stay within one path component, ** crosses, [a-z] and [!a-z].

    Names are chosen by whoever is looked at, so no name may make matching slow. Where several
    wildcards follow each other, each takes the shortest that will do, and is not asked again
    (atomic groups): for globs that is enough, because the next wildcard can take up the rest.

    Raises:
        ValueError: empty, or a bracket that is not closed.
    """
    if not glob:
        raise ValueError("is empty")
    chunks = [_pieces(chunk) for chunk in _split(glob, "**")]
    first, *middle = [_chunk(pieces, last=False) for pieces in chunks[:-1]] or [""]
    pattern = first + "".join(f"(?>.*?{chunk})" for chunk in middle)
    pattern += (".*" if len(chunks) > 1 else "") + _chunk(chunks[-1], last=True)
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(str(error)) from None


def _split(glob: str, mark: str) -> list[str]:
    """Split at wildcards, but not at those between brackets."""
    parts, rest, position = [], "", 0
    while position < len(glob):
        if glob.startswith(mark, position):
            parts.append(rest)
            rest = ""
            position += len(mark)
        elif glob[position] == "[":
            end = _bracket_end(glob, position)
            rest += glob[position:end]
            position = end
        else:
            rest += glob[position]
            position += 1
    return [*parts, rest]


def _bracket_end(glob: str, start: int) -> int:
    end = glob.find("]", start + (3 if glob.startswith("!", start + 1) else 2))
    if end < 0:
        raise ValueError("has a [ without its ]")
    return end + 1


def _pieces(chunk: str) -> list[str]:
    """Translate what is between the stars of a part without **."""
    return [_piece(piece) for piece in _split(chunk, "*")]


def _chunk(pieces: list[str], last: bool) -> str:
    first, *rest = pieces
    if not rest:
        return first
    *middle, end = rest
    lazy = "".join(f"(?>[^/]*?{piece})" for piece in middle)
    return first + lazy + (f"[^/]*{end}" if last else f"(?>[^/]*?{end})")


def _piece(text: str) -> str:
    pattern, position = "", 0
    while position < len(text):
        if text[position] == "[":
            end = _bracket_end(text, position)
            pattern += _set(text[position + 1 : end - 1])
            position = end
        else:
            pattern += "[^/]" if text[position] == "?" else re.escape(text[position])
            position += 1
    return pattern


def _set(members: str) -> str:
    negated = members.startswith("!")
    members = members[negated:]
    inside, position = "", 0
    while position < len(members):
        if members[position + 1 : position + 2] == "-" and position + 2 < len(members):
            low, high = members[position], members[position + 2]
            inside += f"{re.escape(low)}-{re.escape(high)}"
            position += 3
        else:
            inside += re.escape(members[position])
            position += 1
    return f"[{'^/' if negated else ''}{inside}]"


def fold_path(path: bytes) -> bytes:
    """Fold "//", "." and ".." out of an absolute path by its letters alone.

    Globs are compared with the path as the program asked for it; what symbolic links in
    it lead to is the kernel's to know.
    """
    folded = os.path.normpath(path)
    return folded[1:] if folded.startswith(b"//") else folded


_KEYS = {"name", "clear", "when", "paths", "programs"}


def load_rules(file: Path) -> tuple[Rule, ...]:
    """Read a rule file (TOML, one [[rule]] table a rule).

    Raises:
        FlagshimError: naming the file and the line, rule or key that is wrong.
    """
    try:
        with open(file, "rb") as stream:
            document = tomllib.load(stream)
    except OSError as error:
        raise FlagshimError(f"--rules {file}: {error.strerror}", "name a rule file") from None
    except UnicodeDecodeError:
        raise FlagshimError(f"{file}: not UTF-8, so not TOML", "name a rule file") from None
    except RecursionError:
        raise FlagshimError(f"{file}: nested too deeply", "name a rule file") from None
    except tomllib.TOMLDecodeError as error:
        raise FlagshimError(f"{file}: {error}", "correct the TOML there") from None
    unknown = document.keys() - {"rule"}
    if unknown:
        raise _unknown_key(str(file), unknown, {"rule"})
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not tables:
        raise FlagshimError(f"{file}: no rule", "write at least one [[rule]] table")
    return tuple(_rule(f"{file}, rule {n}", table) for n, table in enumerate(tables, 1))


def _rule(origin: str, table: object) -> Rule:
    if not isinstance(table, dict):
        raise FlagshimError(f"{origin}: not a table", "write [[rule]] on a line of its own")
    unknown = table.keys() - _KEYS
    if unknown:
        raise _unknown_key(origin, unknown, _KEYS)
    name = table.get("name", origin.rsplit(", ", 1)[1].replace(" ", "-"))
    if not isinstance(name, str) or not name:
        raise FlagshimError(f"{origin}, name: not a string", 'as in name = "noatime"')
    when = table.get("when", When.REFUSED)
    if when not in tuple(When):
        raise FlagshimError(f"{origin}, when: {when!r}", 'either "refused" or "always"')
    lists = {}
    for key in ("clear", "paths", "programs"):
        value = table.get(key, ["O_NOATIME"] if key == "clear" else [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise FlagshimError(f"{origin}, {key}: not a list of strings", f'as in {key} = ["…"]')
        lists[key] = tuple(value)
    return Rule(name=name, when=When(when), origin=f"{origin} ({name})", **lists)


def _unknown_key(where: str, unknown: Iterable[object], known: Iterable[str]) -> FlagshimError:
    names = ", ".join(sorted(map(repr, unknown)))
    return FlagshimError(f"{where}: unknown key {names}", f"known: {', '.join(sorted(known))}")
