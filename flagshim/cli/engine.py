"""The option --engine of run and attach."""

import dataclasses
from pathlib import Path
from types import ModuleType

import click

from flagshim.cli.supervision import Asked
from flagshim.engines.policy import Fate
from flagshim.errors import FlagshimError
from flagshim.posts import Supervision

engine_option = click.option(
    "--engine",
    type=click.Choice(["ptrace", "bpf", "auto"]),
    default="ptrace",
    show_default=True,
    help="Stop the program at its opens; or change them inside the kernel, as root and where the "
    "kernel can (Linux 7.3), with rules that say always; or bpf where it can be done.",
)


def supervision_for(engine: str, asked: Asked, trace: Path, fate: Fate) -> Supervision:
    """Return what the options mean to an engine: to bpf always, if nobody said when."""
    if engine == "bpf" and not (asked.when or asked.rule_file):
        asked = dataclasses.replace(asked, when="always")
    return asked.supervision(trace, fate)


def bpf_sessions(engine: str, how: Supervision) -> ModuleType | None:
    """Return flagshim.rewriting if the bpf engine is to be used; None for ptrace.

    Raises:
        FlagshimError: it is asked for and not installed.
    """
    if engine == "ptrace":
        return None
    try:
        from flagshim import rewriting  # noqa: PLC0415  (what ptrace can do without)
    except ModuleNotFoundError:
        if engine == "auto":
            return None
        raise FlagshimError(
            "--engine bpf needs pyelftools", "pip install 'flagshim[bpf]'"
        ) from None
    return rewriting if engine == "bpf" or rewriting.engine_for(how.policy) == "bpf" else None
