"""`flagshim attach`."""

from pathlib import Path

import click

from flagshim.cli.engine import Engine, bpf_sessions, engine_option, supervision_for
from flagshim.cli.options import report_on, seconds_option, sum_up, trace_option
from flagshim.cli.supervision import Asked, supervision_options
from flagshim.engines.policy import Fate
from flagshim.errors import FlagshimError
from flagshim.saying import say
from flagshim.session import attach as attach_to
from flagshim.session import attach_for_good
from flagshim.trace.location import new_trace


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: flagshim attach --for 60 $(pidof qemu-system-x86_64)",
)
@seconds_option("when the process ends")
@click.option("--inject-filter", is_flag=True,
              help="Put flagshim's seccomp filter into the process, so that only its opens stop: "
              "fast, and for good. It can never be taken out, and the process needs a supervisor "
              "from then on: a helper in the background serves it until it ends. Unless it has "
              "CAP_SYS_ADMIN, no_new_privs is set, and set-user-ID programs that it starts lose "
              "their privilege.")  # fmt: skip
@trace_option("a new file in $XDG_STATE_HOME/flagshim")
@engine_option(Engine.PTRACE, Engine.BPF, Engine.AUTO)
@supervision_options
@click.argument("pid", type=click.IntRange(min=1))
def attach(
    pid: int,
    seconds: float | None,
    inject_filter: bool,
    trace: Path | None,
    engine: str,
    asked: Asked,
) -> int:
    """Supervise a running process, its threads, and from then on its children.

    ^C, SIGTERM or the end of --for leaves it as it was. Nothing is put into the process, so
    every system call it makes stops twice: it is slowed down much more than under run.
    With --inject-filter it is quick, and there is no leaving.

    Exit status: 0 once it is left or has ended, or is served in the background; 125 if it could
    not be traced.
    """
    if inject_filter and seconds is not None:
        raise FlagshimError(
            "--inject-filter together with --for: the filter stays", "leave one of them out"
        )
    if inject_filter and engine != "ptrace":
        raise FlagshimError(
            f"--inject-filter together with --engine {engine}: the filter is for ptrace",
            "leave one of them out",
        )
    if asked.fate == Fate.KILL:
        raise FlagshimError(
            "--if-supervisor-dies kill: not for a process that was there before flagshim",
            "leave it out: it goes on",
        )
    if asked.fate and not inject_filter:
        raise FlagshimError(
            "--if-supervisor-dies continue without --inject-filter: nobody takes over",
            "leave it out: the process goes on as it was before",
        )
    file = trace or new_trace(f"pid{pid}")
    if inject_filter:
        helper = attach_for_good(pid, asked.supervision(file, Fate.CONTINUE))
        say(f"process {pid} is served by process {helper} until it ends; see: {report_on(file)}")
        return 0
    how = supervision_for(engine, asked, file, Fate.CONTINUE)
    bpf = bpf_sessions(engine, how)
    outcome = bpf.attach_bpf(pid, how, seconds) if bpf else attach_to(pid, how, seconds)
    sum_up(outcome, file)
    return 0
