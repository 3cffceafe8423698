"""Names, times and command lines as a terminal can show them.

A name is chosen by whoever opened the file, often a guest that is not to be trusted: an
escape sequence in it must reach no terminal, and two names must not look the same.
"""

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

UNKNOWN = "(unknown)"
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG = {escape: character for character, escape in _SHORT.items()}
_UNIT = re.compile(
    r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})|.", re.DOTALL
)  # fmt: skip
_NS = 10**9


def printable(name: str | bytes | None) -> str:
    r"""Return a name with everything escaped that a terminal would not show as it is.

    No two names are shown the same: backslash is `\\`; a byte that is not UTF-8, as bytes
    or as the surrogate that stands for it (PEP 383), is `\x80` to `\xff`; a control
    character of ASCII `\n`, `\r`, `\t` or `\x00` to `\x7f`; any other character without
    a shape of its own (C1, bidirectional, invisible, unassigned: str.isprintable())
    `\u0085` or `\U000e0001`. Spaces at either end are `\x20`. None is "(unknown)".
    """
    if name is None:
        return UNKNOWN
    text = name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable() and "\\" not in text and text == text.strip(" "):
        return text
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" "))
    end = len(text) - len(inner) - start
    return "\\x20" * start + "".join(map(_escape, inner)) + "\\x20" * end


def _escape(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def unprintable(text: str) -> str:
    r"""Return the name that `printable` made this of; bytes not UTF-8 as surrogates (PEP 383).

    Raises:
        ValueError: it never did: a backslash that escapes nothing.
    """
    return "".join(map(_unescape, _UNIT.findall(text)))


def _unescape(unit: str) -> str:
    if len(unit) == 1:
        if unit == "\\":
            raise ValueError("a backslash that escapes nothing; one that is meant is \\\\")
        return unit
    if unit in _LONG:
        return _LONG[unit]
    code = int(unit[2:], 16)
    if code > sys.maxunicode:
        raise ValueError(f"{unit} is no character")
    return chr(code + 0xDC00 if unit[1] == "x" and code >= 0x80 else code)


def shorten(text: str, width: int | None) -> str:
    """Return what `printable` made, with "…" for its middle if it is over `width` characters.

    Escape sequences stay whole or go. The end, where names differ, gets the odd character.

    Args:
        width: at least 1; None: as long as it is.
    """
    if width is None or len(text) <= width:
        return text
    units = _UNIT.findall(text)
    room = width - 1
    head = _fitting(units, room // 2)
    tail = _fitting(units[::-1], room - room // 2)[::-1]
    return "".join((*head, "…", *tail))


def _fitting(units: Sequence[str], room: int) -> Sequence[str]:
    for count, unit in enumerate(units):
        room -= len(unit)
        if room < 0:
            return units[:count]
    return units


def command_line(command: Sequence[str | bytes]) -> str:
    """Return a command as one line a shell would split into it, made printable."""
    return printable(shlex.join(map(os.fsdecode, command)))


def exit_status(status: int | None) -> str:
    """Return a session's exit status in words."""
    if status is None:
        return "not known"
    if status >= 0:
        return str(status)
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def local_date(time_ns: int) -> str:
    """Return the local date, "2024-11-21", of nanoseconds since the epoch."""
    return time.strftime("%Y-%m-%d", time.localtime(time_ns // _NS))


def local_second(time_ns: int) -> str:
    """Return the local date and time, "2024-11-21 08:30:00 +0100"."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(time_ns // _NS))


def local_clock(time_ns: int) -> str:
    """Return the local time of day, "08:30:00.123"."""
    clock = time.strftime("%H:%M:%S", time.localtime(time_ns // _NS))
    return f"{clock}.{time_ns % _NS // 10**6:03d}"


def utc(time_ns: int) -> str:
    """Return nanoseconds since the epoch in ISO 8601, "2024-11-21T07:30:00.123456789Z"."""
    second = datetime.fromtimestamp(time_ns // _NS, UTC).replace(tzinfo=None)
    return f"{second.isoformat()}.{time_ns % _NS:09d}Z"


def duration(ns: int) -> str:
    """Return a length of time, "12.345 s" or "2 h 03 min"."""
    seconds = max(ns, 0) / _NS
    if seconds < 60:
        return f"{seconds:.3f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
