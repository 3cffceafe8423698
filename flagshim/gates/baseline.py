"""A baseline: opens that are expected, as globs of rule, program and path."""

import os
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from flagshim.rules import glob_pattern
from flagshim.trace.records import Name, Opened

UNKNOWN = "(unknown)"
"""Stands for a path that is not known; a file of that name is ./(unknown)."""
NO_RULE = "-"
"""Stands for no rule."""

_WILDCARD = re.compile(r"[*?\[]")
_LITERAL = re.compile(r"(?:[^*?\[]|\[[^]!]\])+", re.DOTALL)
_ESCAPED = re.compile(r"\[([^]!])\]", re.DOTALL)


class Effect(StrEnum):
    """What came of opens that flagshim had something to do with."""

    REWRITTEN = "rewritten"
    """Made without a flag."""
    REFUSED = "refused"
    """Refused by the kernel in the end, whether a flag was cleared or not."""
    FAILED = "failed"
    """Made without a flag, and failed in another way."""


class Finding(NamedTuple):
    """So many opens of one file by one program under one rule that came to the same."""

    effect: Effect
    rule: str | None
    program: str | bytes
    path: Name
    opens: int


class Entry(NamedTuple):
    """A line of a baseline; `rule`, `program` and `path` are globs as in a rule file."""

    effect: Effect
    rule: str
    program: str
    path: str


def findings(opened: Opened) -> Iterator[Finding]:
    """Return what came of the opens of a file; nothing for those that were allowed as asked."""
    for effect, count in (
        (Effect.REWRITTEN, opened.rewritten),
        (Effect.REFUSED, opened.refused),
        (Effect.FAILED, opened.spoiled),
    ):
        if count:
            yield Finding(effect, opened.rule, opened.program, opened.path, count)


def texts(finding: Finding) -> Entry:
    """Return what the globs of an entry are compared with; bytes not UTF-8 as in PEP 383."""
    effect, rule, program, path, _ = finding
    name = UNKNOWN if path is None else os.fsdecode(path)
    if path is not None and name == UNKNOWN:
        name = f"./{name}"
    return Entry(effect, NO_RULE if rule is None else rule, os.fsdecode(program), name)


def literally(entry: Entry) -> Entry:
    """Return the entry whose globs only these names match."""
    return Entry(entry.effect, *map(escape_glob, entry[1:]))


def escape_glob(text: str) -> str:
    """Return the glob that only this text matches."""
    return _WILDCARD.sub(lambda wildcard: f"[{wildcard[0]}]", text)


def _unescape(glob: str) -> str | None:
    """Return the one name that matches a glob; None if there may be more."""
    if not _WILDCARD.search(glob):
        return glob
    return _ESCAPED.sub(r"\1", glob) if _LITERAL.fullmatch(glob) else None


_ByFolder = dict[str, list[tuple[re.Pattern[str], int]]]
"""Path globs and the index of their entry, by the folder that all their matches are in."""


class Baseline:
    """What is expected; it finds an entry among a million, and a path among thousands of globs.

    Args:
        name: where it comes from, for messages.
        entries: what it expects.

    Raises:
        ValueError: a glob is none.
    """

    def __init__(self, name: str, entries: Iterable[Entry]) -> None:
        self.name = name
        self.entries = tuple(entries)
        self._exact: dict[Entry, int] = {}
        self._globs: dict[tuple[Effect, str, str], _ByFolder] = {}
        self._chosen: dict[tuple[Effect, str, str], list[_ByFolder]] = {}
        for at, entry in enumerate(self.entries):
            rule, program, path = map(_unescape, entry[1:])
            if rule is not None and program is not None and path is not None:
                self._exact.setdefault(Entry(entry.effect, rule, program, path), at)
            else:
                paths = self._globs.setdefault(entry[:3], {})
                glob = glob_pattern(entry.path)
                paths.setdefault(_folder(entry.path), []).append((glob, at))
        for _, *globs in self._globs:
            for glob_ in globs:
                glob_pattern(glob_)

    def find(self, finding: Finding) -> int | None:
        """Return the index of an entry that expects this; None if none does."""
        names = texts(finding)
        exact = self._exact.get(names)
        if exact is not None or not self._globs:
            return exact
        for paths in self._for_program(names[:3]):
            for folder in _folders(names.path):
                for pattern, at in paths.get(folder, ()):
                    if pattern.fullmatch(names.path):
                        return at
        return None

    def _for_program(self, key: tuple[Effect, str, str]) -> list[_ByFolder]:
        if key not in self._chosen:
            effect, *names = key
            self._chosen[key] = [
                paths
                for (of_effect, *globs), paths in self._globs.items()
                if of_effect == effect
                and all(
                    glob_pattern(g).fullmatch(name) for g, name in zip(globs, names, strict=True)
                )
            ]
        return self._chosen[key]


def _folder(glob: str) -> str:
    """Return the deepest folder, with a slash behind it, that all matches of a glob are in."""
    wildcard = _WILDCARD.search(glob)
    return glob[: glob.rfind("/", 0, wildcard.start()) + 1] if wildcard else ""


def _folders(path: str) -> Iterator[str]:
    yield ""
    for slash in re.finditer("/", path):
        yield path[: slash.end()]
