"""The BPF engine that takes flags off opens: uprobes in libc, without a stop.

It cannot wait for the kernel's refusal, so its rules are those that say "always". If flagshim
dies, the kernel takes the probes away, and the program has its refusals back.
"""

import functools
import operator
import os
import re
from collections.abc import Iterable, Sequence

from flagshim.engines.bpf.libc import ENTRIES, Libc, entries_of
from flagshim.engines.bpf.observer import ANY_FAILURE, Observer, Selection
from flagshim.engines.bpf.program import is_read_only
from flagshim.engines.bpf.records import PREFIX_SIZE
from flagshim.engines.bpf.uprobes import Uprobes, refused
from flagshim.errors import FlagshimError
from flagshim.openflags import bits_of
from flagshim.rules import MACHINE, Rule, When

_ONE_BIT = ("O_NOATIME", "O_DIRECT")
"""O_SYNC contains O_DSYNC: which of them is meant takes more than a mask."""
_USE_PTRACE = "leave --engine bpf out"
_FOLDER = re.compile(r"(/(?:[^*?\[]*/)?)\*\*")


class Rewriter(Observer):
    """An Observer of all calls with a flag of the rules, that takes these flags off before."""

    name = "bpf"

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Load the programs.

        Args:
            rules: of those that `why_not` has nothing against.

        Raises:
            FlagshimError: this kernel does not let them write registers, or that cannot be tried.
        """
        everywhere, below = _masks(rules)
        flags = _union((everywhere, *below.values()))
        super().__init__(Selection(errnos=(0, *ANY_FAILURE), flags=flags))
        try:
            self._functions = {
                name: self._program.load_for_uprobe(name) for name in set(ENTRIES.values())
            }
        except FlagshimError as error:
            self._program.close()
            if not is_read_only(error):
                raise
            raise FlagshimError(
                "this kernel does not let a uprobe program write registers, which Linux 7.3 does",
                _USE_PTRACE,
            ) from None
        self._probes = Uprobes()
        self.set(clear=everywhere, by_prefix=int(bool(below)))
        prefixes = self.table("prefixes")
        for prefix, bits in below.items():
            text = prefix + bytes(PREFIX_SIZE - len(prefix))
            prefixes[prefixes.Key(len(prefix) * 8, text)] = prefixes.Leaf(bits)

    def __exit__(self, *details: object) -> None:
        self._probes.__exit__()
        super().__exit__(*details)

    def release(self) -> None:
        """Take the probes away; calls that were changed before are told of all the same."""
        self._probes.release()

    def reach(self, pid: int, libc: Libc) -> None:
        """Put the probes into a process, and into those it starts from then on.

        Raises:
            FlagshimError: the kernel refuses.
        """
        for offset, function in entries_of(libc).items():
            program = self._functions[function]
            try:
                self._probes.add(f"{function}_{offset:x}", libc.file, offset, pid, program)
            except OSError as error:
                raise refused(error, libc.name, pid, _USE_PTRACE) from None


def why_not(rules: Sequence[Rule]) -> FlagshimError | None:
    """Return the reason why the bpf engine cannot follow these rules; None if it can."""
    for rule in rules:
        where = rule.origin or "the options"
        if rule.when is When.REFUSED:
            return FlagshimError(
                f"{where}: the bpf engine cannot wait for the kernel's refusal",
                'say always (--when always, when = "always"), or leave --engine bpf out',
            )
        for name in rule.clear:
            if name not in _ONE_BIT:
                return FlagshimError(
                    f"{where}: the bpf engine clears {' and '.join(_ONE_BIT)} only", _USE_PTRACE
                )
        if rule.programs:
            return FlagshimError(
                f"{where}: the bpf engine serves the process you name and its children, "
                "whatever programs they run",
                "leave programs out, or --engine bpf",
            )
        for glob in rule.paths:
            try:
                _prefix(glob)
            except ValueError as error:
                return FlagshimError(f"{where}: path {glob!r}: {error}", _USE_PTRACE)
    return None


def _masks(rules: Sequence[Rule]) -> tuple[int, dict[bytes, int]]:
    """Return the bits to clear everywhere, and those to clear below a folder."""
    everywhere = 0
    below: dict[bytes, int] = {}
    for rule in rules:
        bits = _union(bits_of(name, MACHINE) for name in rule.clear)
        if not rule.paths:
            everywhere |= bits
        for glob in rule.paths:
            prefix = _prefix(glob)
            below[prefix] = below.get(prefix, 0) | bits
    # The kernel finds the longest prefix only: it has to know what the shorter ones say.
    whole = {
        prefix: _union(bits for other, bits in below.items() if prefix.startswith(other))
        for prefix in below
    }
    return everywhere, whole


def _union(masks: Iterable[int]) -> int:
    return functools.reduce(operator.or_, masks, 0)


def _prefix(glob: str) -> bytes:
    """Return what a path must begin with to match a glob.

    Raises:
        ValueError: a prefix is not all there is to it.
    """
    found = _FOLDER.fullmatch(glob)
    if found is None:
        raise ValueError("the bpf engine compares beginnings only, as in /nix/store/**")
    prefix = os.fsencode(found[1])
    if len(prefix) >= PREFIX_SIZE:
        raise ValueError(f"longer than {PREFIX_SIZE - 1} bytes")
    return prefix
