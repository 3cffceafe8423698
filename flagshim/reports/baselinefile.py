"""A baseline as a text file that people review, edit and keep beside their code."""

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from flagshim import __version__
from flagshim.errors import FlagshimError
from flagshim.gates.baseline import Baseline, Effect, Entry, findings, literally, texts
from flagshim.gates.patterns import Pattern, generalise
from flagshim.reports.text import printable, unprintable
from flagshim.rules import glob_pattern
from flagshim.trace.reader import TraceReader

VERSION = 1
_MARK = "# flagshim baseline "
_EXAMPLE = (
    "a line is EFFECT RULE PROGRAM PATH, as in: rewritten noatime qemu-system-* /nix/store/**"
)


def entries_of(reader: TraceReader, since_ns: int | None = None) -> Iterator[Entry]:
    """Return what a trace would have expected: names, not globs, each once."""
    for opened in reader.opened(since_ns):
        for finding in findings(opened):
            yield texts(finding)


def write(reader: TraceReader, out: TextIO, since_ns: int | None, exact: bool) -> None:
    """Write what a trace has as a baseline.

    Args:
        exact: every path by itself; else folders with many become globs.

    Raises:
        FlagshimError: the trace is damaged.
    """
    entries = entries_of(reader, since_ns)
    if exact:
        patterns = sorted(Pattern(literally(entry), 1) for entry in set(entries))
    else:
        patterns = generalise(set(entries))
    out.write(
        f"{_MARK}{VERSION}\n"
        f"# Opens that are expected, written by flagshim {__version__}. Edit it as you like.\n"
        "# EFFECT (rewritten, refused, failed), RULE, PROGRAM and PATH; the last three are\n"
        "# globs, as in a rule file.\n"
    )
    widths = [max((len(_cell(row.entry[at])) for row in patterns), default=0) for at in (0, 1, 2)]
    for entry, files in patterns:
        if files > 1:
            out.write(f"# {files} files:\n")
        out.write(line(entry, widths) + "\n")


def line(entry: Entry, widths: list[int] | None = None) -> str:
    """Return an entry as a line, without its end."""
    cells = [_cell(text) for text in entry[:3]]
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths or (0, 0, 0), strict=True)]
    return "  ".join((*padded, printable(entry.path)))


def _cell(text: str) -> str:
    return printable(text).replace(" ", "\\x20")


def read(path: Path) -> Baseline:
    """Read a baseline, or take what a trace has for one.

    Raises:
        FlagshimError: naming the line that is wrong.
    """
    try:
        with open(path, "rb") as file:  # a pipe, perhaps
            start = file.read(16)
            if start == b"SQLite format 3\0":
                with TraceReader(path) as reader:
                    return Baseline(str(path), map(literally, entries_of(reader)))
            text = (start + file.read()).decode("utf-8-sig")
    except OSError as error:
        hint = "make one with flagshim baseline"
        raise FlagshimError(f"--baseline {path}: {error.strerror}", hint) from None
    except UnicodeDecodeError:
        hint = "name a trace, or what flagshim baseline wrote"
        raise FlagshimError(f"--baseline {path}: not a text file in UTF-8", hint) from None
    # Not splitlines(), which breaks lines at what `printable` escapes and at more.
    return Baseline(str(path), list(_entries(path, text.split("\n"))))


def _entries(path: Path, lines: list[str]) -> Iterator[Entry]:
    if lines[0].startswith(_MARK) and lines[0].removeprefix(_MARK).strip() != str(VERSION):
        raise FlagshimError(f"--baseline {path}: of a newer flagshim", "make it anew, or upgrade")
    for number, text in enumerate(lines, 1):
        content = text.strip()
        if content and not content.startswith("#"):
            try:
                yield _entry(content)
            except ValueError as error:
                raise FlagshimError(f"{path}:{number}: {error}", _EXAMPLE) from None


def _entry(text: str) -> Entry:
    cells = text.split(None, 3)
    if len(cells) != 4:
        raise ValueError(f"{len(cells)} of 4 columns")
    if cells[0] not in tuple(Effect):
        raise ValueError(f"{cells[0]!r} is not one of {', '.join(Effect)}")
    rule, program, path = map(unprintable, cells[1:])
    for glob in (rule, program, path):
        try:
            glob_pattern(glob)
        except ValueError as error:
            raise ValueError(f"glob {glob!r} {error}") from None
    return Entry(Effect(cells[0]), rule, program, path)
