"""Lengths of time as people type them."""

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> int | None:
    """Return what "90s", "15m", "2h" or "3d" is in seconds; None for anything else."""
    found = re.fullmatch("([0-9]{1,12})([smhd])", text)
    return int(found[1]) * _SECONDS[found[2]] if found else None
