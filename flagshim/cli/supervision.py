"""The options that say how a program is supervised, shared by run, exec, wrap and attach."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from flagshim.engines.policy import Fate, Policy
from flagshim.errors import FlagshimError
from flagshim.posts import Supervision
from flagshim.rules import BUILT_IN, Exemption, Rule, When, load_rules
from flagshim.trace.bounds import EVERYTHING, parse_bound

_OPTIONS = (
    click.option(
        "--when",
        type=click.Choice([when.value for when in When]),
        help="Clear a flag only where the kernel refuses the open for it (refused, the "
        "default), or wherever it is given (always).",
    ),
    click.option(
        "--clear",
        metavar="FLAG",
        multiple=True,
        help="Flag to clear; repeatable. Default: O_NOATIME.",
    ),
    click.option(
        "--path",
        "paths",
        metavar="GLOB",
        multiple=True,
        help="Only for paths that match, as in '/nix/store/**'; repeatable.",
    ),
    click.option(
        "--rules",
        "rule_file",
        metavar="FILE.toml",
        type=click.Path(path_type=Path),
        help="Take the rules from a file instead of the three options above.",
    ),
    click.option(
        "--except",
        "exempt",
        metavar="PROGRAM",
        multiple=True,
        help="Leave PROGRAM (a base name or glob) and what it starts alone, as gdb, strace and "
        "programs with LeakSanitizer need it under ptrace; their own opens with the flag then fail "
        "with ENOSYS. Repeatable.",
    ),
    click.option(
        "--if-supervisor-dies",
        "fate",
        type=click.Choice([fate.value for fate in Fate]),
        help="What becomes of the program then: the kernel kills it (kill), or it goes on, and a "
        "guard takes over within moments (continue). Default: kill. Under attach and --engine "
        "notify it always goes on; under attach a guard takes over with --inject-filter.",
    ),
    click.option(
        "--keep",
        metavar="N|TIME",
        help="Keep only the newest N opens of the trace file, all its sessions together, or those "
        "of the last TIME (90s, 15m, 12h, 30d); of older ones the counts by path stay. "
        "Default: all.",
    ),
)


@dataclass(frozen=True)
class Asked:
    """The options as they were given."""

    when: str | None
    clear: tuple[str, ...]
    paths: tuple[str, ...]
    rule_file: Path | None
    exempt: tuple[str, ...]
    fate: str | None
    keep: str | None

    def supervision(self, trace: Path, fate: Fate = Fate.KILL) -> Supervision:
        """Return what they mean.

        Args:
            trace: file to write to.
            fate: of the program if nobody has asked for one.

        Raises:
            FlagshimError: naming what is wrong with them.
        """
        keep = EVERYTHING if self.keep is None else parse_bound(self.keep)
        fate = fate if self.fate is None else Fate(self.fate)
        policy = Policy(self._rules(), Exemption(self.exempt), fate)
        return Supervision(policy, trace, keep)

    def words(self) -> Iterator[str]:
        """Return the options as a command line has them, fit for any folder."""
        for name, value in (
            ("--when", self.when),
            ("--rules", self.rule_file and str(self.rule_file.absolute())),
            ("--if-supervisor-dies", self.fate),
            ("--keep", self.keep),
        ):
            if value:
                yield from (name, value)
        for name, values in (
            ("--clear", self.clear),
            ("--path", self.paths),
            ("--except", self.exempt),
        ):
            for value in values:
                yield from (name, value)

    def _rules(self) -> tuple[Rule, ...]:
        if self.rule_file is None:
            return (
                Rule(
                    clear=self.clear or BUILT_IN.clear,
                    when=When(self.when) if self.when else BUILT_IN.when,
                    paths=self.paths,
                ),
            )
        if self.when or self.clear or self.paths:
            raise FlagshimError(
                "--rules together with --when, --clear or --path", "write it into the rule file"
            )
        return load_rules(self.rule_file)


def supervision_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options, and `asked`, an Asked, as a parameter."""

    @functools.wraps(function)
    def command(**parameters: Any) -> int:  # noqa: ANN401  (whatever click passes)
        names = Asked.__dataclass_fields__
        asked = Asked(**{name: parameters.pop(name) for name in names})
        return function(asked=asked, **parameters)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command
