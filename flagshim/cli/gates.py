"""The options that make `run` and `report` fail for what a trace says."""

import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from flagshim.cli.output import palette
from flagshim.gates.condition import Condition
from flagshim.gates.judgement import Gate, Judgement
from flagshim.reports import baselinefile, gate
from flagshim.saying import say


class _ConditionType(click.ParamType[Condition]):
    name = "condition"

    def convert(
        self,
        value: Any,  # noqa: ANN401  (click's)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Condition:
        try:
            return Condition.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_OPTIONS = (
    click.option(
        "--fail-on",
        "conditions",
        metavar="EXPR",
        type=_ConditionType(),
        multiple=True,
        help="Exit with 122 if there are any, or so many: rewrites, refusals, "
        "'failed after rewrite', 'unknown path', 'lost events', 'blind spots', alone or "
        "compared, as in 'refusals > 7'; repeatable.",
    ),
    click.option(
        "--baseline",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Expect the opens in FILE, made by flagshim baseline, or a trace: only others are "
        "counted for --fail-on, and without it any other is a failure.",
    ),
)


def gate_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options, and `gate`, a Gate or None, as a parameter."""

    @functools.wraps(function)
    def command(
        conditions: tuple[Condition, ...],
        baseline: Path | None,
        **parameters: Any,  # noqa: ANN401  (whatever click passes)
    ) -> int:
        wanted = conditions or baseline is not None
        expected = None if baseline is None else baselinefile.read(baseline)
        return function(gate=Gate(conditions, expected) if wanted else None, **parameters)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def announce(judgement: Judgement, color: str = "auto") -> None:
    """Say on stderr what became of the gate, and what is different from the baseline."""
    say(gate.verdict(judgement))
    if judgement.difference:
        lines = gate.difference_lines(judgement.difference, palette(color, sys.stderr))
        with suppress(OSError):
            for line in lines:
                os.write(2, f"{line}\n".encode(errors="backslashreplace"))
