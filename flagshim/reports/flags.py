"""Open flags of an event, by name."""

from functools import lru_cache

from flagshim.openflags import CLEARABLE, flag_names, known_machine

# There are millions of events, and a handful of combinations of flags.
_COMBINATIONS = 1009


@lru_cache(_COMBINATIONS)
def names(flags: int, machine: str) -> str:
    """Return the flags' names; the number, in hexadecimal, for a machine without a table."""
    return flag_names(flags, machine) if known_machine(machine) else hex(flags)


@lru_cache(_COMBINATIONS)
def cleared(before: int, after: int, machine: str) -> tuple[str, ...]:
    """Return the names of the flags that the program gave and the kernel did not get."""
    if not known_machine(machine):
        return (hex(before & ~after),) if before & ~after else ()
    left = names(after, machine).split("|")
    return tuple(name for name in names(before, machine).split("|") if name not in left)


@lru_cache(_COMBINATIONS)
def change(before: int, after: int, machine: str) -> str:
    """Return "-O_NOATIME" if that flag was cleared, "O_NOATIME" if it was left as it was.

    Flags that flagshim never clears, such as O_CLOEXEC, are not mentioned.
    """
    gone = cleared(before, after, machine)
    kept = [name for name in names(after, machine).split("|") if name in CLEARABLE]
    return " ".join([*(f"-{name}" for name in gone), *kept])
