"""Opened files as a tree of folders with sums, of a size that a person and a page can take."""

from collections.abc import Iterator
from typing import Any

from flagshim.reports.text import printable
from flagshim.trace.records import Opened

NODES = 20_011
"""Folders and files at most. What is beyond is counted in the folder it is in."""
_DEEPEST = 61
"""Folders below each other that are told apart; a guest may nest two thousand."""


Counts = tuple[int, int, int, int, int]
"""Opens; and of them rewritten, refused, failed in another way, kept."""


def effects(opened: Opened) -> Counts:
    """Return what came of the opens of a file; each is counted once."""
    tally = opened.tally
    failed = tally.failed - opened.denied
    kept = tally.opens - opened.rewritten - opened.refused - failed
    return tally.opens, opened.rewritten, opened.refused, failed, kept


class _Node:
    __slots__ = ("below", "counts", "others")

    def __init__(self) -> None:
        self.counts = [0, 0, 0, 0, 0]
        self.below: dict[str, _Node] = {}
        self.others: list[int] | None = None
        """Files below that have no node, and the sums over them."""


class PathTree:
    """A tree, grown by files; those that come first get nodes."""

    def __init__(self) -> None:
        self._root = _Node()
        self._nodes = 0

    def add(self, opened: Opened) -> None:
        """Take the opens of a file."""
        counts = effects(opened)
        node = self._root
        for name in _names(printable(opened.path)):
            _add(node.counts, counts)
            child = node.below.get(name)
            if child is None:
                if self._nodes >= NODES:
                    if node.others is None:
                        node.others = [0] * 6
                    node.others[5] += 1
                    _add(node.others, counts)
                    return
                self._nodes += 1
                child = node.below[name] = _Node()
            node = child
        _add(node.counts, counts)

    def rows(self) -> list[list[Any]]:
        """Return [name, opens, rewritten, refused, failed, kept, rows below] of each, nested."""
        return _rows(self._root)


def _add(sums: list[int], counts: Counts) -> None:
    for at, count in enumerate(counts):
        sums[at] += count


def _names(path: str) -> Iterator[str]:
    """Return the components of a path, each with the slash before it."""
    first, *others = path.split("/", _DEEPEST)
    if first:
        yield first
    yield from (f"/{name}" for name in others)


def _rows(node: _Node) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name, child in node.below.items():
        while len(child.below) == 1 and child.others is None:
            (only, grandchild), *_ = child.below.items()
            if grandchild.counts != child.counts:
                break
            name, child = name + only, grandchild  # noqa: PLW2901  (one row for both)
        rows.append([name, *child.counts, _rows(child)])
    rows.sort(key=lambda row: (-row[3], -row[1], row[0]))
    if node.others:
        rows.append([f"… {node.others[5]} more", *node.others[:5], []])
    return rows
