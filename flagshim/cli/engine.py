"""The option --engine: which engines there are, and which of them a command is to use."""

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType

import click

from flagshim.cli.supervision import Asked
from flagshim.engines.policy import Fate
from flagshim.errors import FlagshimError
from flagshim.posts import Supervision
from flagshim.saying import say


class Engine(StrEnum):
    """How calls are held and changed."""

    PTRACE = "ptrace"
    NOTIFY = "notify"
    BPF = "bpf"
    AUTO = "auto"


_MEANING = {
    Engine.PTRACE: "stop the program at its opens (ptrace)",
    Engine.NOTIFY: "have a seccomp listener hold them, so that debuggers can attach and the "
    "program does not notice if a supervisor dies (notify)",
    Engine.BPF: "change them inside the kernel, as root and where the kernel can (Linux 7.3), with "
    "rules that say always (bpf)",
    Engine.AUTO: "what can be done here, and does most of what is asked (auto)",
}


def engine_option(*engines: Engine) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return the option for a command that can use these engines."""
    *some, last = (_MEANING[engine] for engine in engines)
    return click.option(
        "--engine",
        type=click.Choice([engine.value for engine in engines]),
        default=Engine.PTRACE.value,
        show_default=True,
        help=f"How: {'; '.join(some)}; or {last}.",
    )


def for_command(
    name: str, asked: Asked, trace: Path, argv: tuple[str, ...], bpf: bool
) -> tuple[Engine, Supervision]:
    """Return the engine for a command that is to be started, and what the options mean to it.

    Args:
        name: as --engine has it.
        asked: the other options.
        trace: file to write to.
        argv: the command.
        bpf: whether the bpf engine can be used at all.

    Raises:
        FlagshimError: the engine is asked for, and cannot do what is.
    """
    engine = Engine(name)
    if engine is Engine.PTRACE:
        return engine, asked.supervision(trace)
    if engine is Engine.BPF:
        return engine, supervision_for(engine, asked, trace, Fate.KILL)
    # Not above: ptrace can do without, and is to start quickly.
    from flagshim import notifying  # noqa: PLC0415
    from flagshim.probes import reason_notify_unavailable  # noqa: PLC0415

    how = asked.supervision(trace, Fate.CONTINUE)
    if engine is Engine.AUTO and bpf and bpf_sessions(engine, how) is not None:
        return Engine.BPF, how
    reason = notifying.why_not(how.policy)
    if reason is None and engine is Engine.AUTO:
        reason = notifying.rather_not(how.policy, argv)
    if reason is None and (cause := reason_notify_unavailable()):
        reason = FlagshimError(f"--engine notify: {cause}", "use --engine ptrace or auto")
    if reason is None:
        return Engine.NOTIFY, how
    if engine is Engine.NOTIFY:
        raise reason
    say(f"ptrace is used, not notify: {reason.message.removeprefix('--engine notify: ')}")
    return Engine.PTRACE, asked.supervision(trace)


def supervision_for(engine: str, asked: Asked, trace: Path, fate: Fate) -> Supervision:
    """Return what the options mean to an engine: to bpf always, if nobody said when."""
    if engine == Engine.BPF and not (asked.when or asked.rule_file):
        asked = dataclasses.replace(asked, when="always")
    return asked.supervision(trace, fate)


def bpf_sessions(engine: str, how: Supervision) -> ModuleType | None:
    """Return flagshim.rewriting if the bpf engine is to be used; None for ptrace.

    Raises:
        FlagshimError: it is asked for and not installed.
    """
    if engine == Engine.PTRACE:
        return None
    try:
        from flagshim import rewriting  # noqa: PLC0415  (what ptrace can do without)
    except ModuleNotFoundError:
        if engine == Engine.AUTO:
            return None
        raise FlagshimError(
            "--engine bpf needs pyelftools", "pip install 'flagshim[bpf]'"
        ) from None
    return rewriting if engine == Engine.BPF or rewriting.engine_for(how.policy) == "bpf" else None
