"""Many paths as a few globs, for a baseline that a person can review."""

from collections.abc import Iterable
from typing import NamedTuple

from flagshim.gates.baseline import Effect, Entry, escape_glob

MANY = 31
"""A folder with more than so many names in it becomes a glob."""
_DEEPEST = 61
"""Folders below each other that are told apart; a guest may nest two thousand."""
_ROOTS = 2
"""Depth of folders that never become `**`, which would expect everything: none and "/"."""


class Pattern(NamedTuple):
    """An entry of a baseline, and how many files it stands for."""

    entry: Entry
    files: int


class _Folder:
    """Files and folders of a folder, as long as there are few."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.names: list[str] = []
        self.count = 0
        """Files right in it, also those that are not in `names` any more."""
        self.folders: dict[str, _Folder] = {}
        self.merged = 0
        """Files anywhere below, if it has become one glob."""

    def add(self, folders: list[str], name: str) -> None:
        """Take a file, below `folders`."""
        folder = self
        for at in folders:
            if folder.merged:
                break
            if at not in folder.folders and len(folder.folders) >= MANY and folder.depth >= _ROOTS:
                folder.merge()
                break
            folder = folder.folders.setdefault(at, _Folder(folder.depth + 1))
        if folder.merged:
            folder.merged += 1
            return
        folder.count += 1
        if folder.count <= MANY:
            folder.names.append(name)

    def merge(self) -> None:
        """Become one glob."""
        self.merged = self.total()
        self.names, self.folders = [], {}

    def total(self) -> int:
        """Return how many files are anywhere below."""
        below = sum(folder.total() for folder in self.folders.values())
        return self.merged or self.count + below

    def globs(self, prefix: str = "") -> list[tuple[str, int]]:
        """Return globs that match all files below, and for how many files each stands."""
        everything = [(f"{prefix}**", self.total())]
        if self.merged:
            return everything
        if self.count > MANY:
            # Names of the deepest ones have slashes in them.
            found = [(f"{prefix}{'*' if self.depth < _DEEPEST else '**'}", self.count)]
        else:
            found = [(f"{prefix}{escape_glob(name)}", 1) for name in self.names]
        for name, folder in self.folders.items():
            found += folder.globs(f"{prefix}{escape_glob(name)}/")
        return everything if len(found) > MANY and self.depth >= _ROOTS else found


def generalise(entries: Iterable[Entry]) -> list[Pattern]:
    """Return globs for the names in entries, in order; names that are few stay themselves.

    Args:
        entries: of names, not of globs, each but once.
    """
    trees: dict[tuple[Effect, str, str], _Folder] = {}
    for entry in entries:
        *folders, name = entry.path.split("/", _DEEPEST)
        trees.setdefault(entry[:3], _Folder(0)).add(folders, name)
    return sorted(
        Pattern(Entry(effect, escape_glob(rule), escape_glob(program), glob), files)
        for (effect, rule, program), tree in trees.items()
        for glob, files in tree.globs()
    )
