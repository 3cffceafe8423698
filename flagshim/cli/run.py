"""`flagshim run`."""

import os
import resource
import signal
import sys
from pathlib import Path

import click

from flagshim.cli.engine import Engine, bpf_sessions, engine_option, for_command
from flagshim.cli.gates import announce, gate_options
from flagshim.cli.options import (
    COMMAND_SETTINGS,
    command_argument,
    command_from,
    status_option,
    sum_up,
    trace_option,
    user_option,
)
from flagshim.cli.supervision import Asked, supervision_options
from flagshim.engines.command import find_user
from flagshim.errors import EXIT_GATE, FlagshimError
from flagshim.gates.judgement import Gate
from flagshim.saying import say
from flagshim.session import Outcome, supervise
from flagshim.trace.location import new_trace
from flagshim.trace.reader import TraceReader


@click.command(
    context_settings=COMMAND_SETTINGS,
    epilog="Example: flagshim run -u nobody -- qemu-system-x86_64 -fsdev local,…",
)
@user_option
@trace_option("a new file in $XDG_STATE_HOME/flagshim")
@engine_option(Engine.PTRACE, Engine.NOTIFY, Engine.BPF, Engine.AUTO)
@supervision_options
@status_option
@gate_options
@command_argument
def run(
    user: str | None,
    trace: Path | None,
    engine: str,
    asked: Asked,
    gate: Gate | None,
    cmd: tuple[str, ...],
) -> int:
    """Run CMD supervised, wait for it and all it started, and exit as CMD exits.

    By default O_NOATIME is cleared where the kernel would refuse the open for it (EPERM, for
    whoever does not own the file), and nowhere else. Every open that carried the flag goes
    into a trace, an SQLite file; `flagshim report` shows it.

    Exit status: CMD's own; a fatal signal is raised again. 122: CMD exited with 0, but the gate
    (--fail-on, --baseline) failed. 125: flagshim failed. 126: CMD could not be executed. 127: CMD
    was not found.
    """
    cmd = command_from(cmd, "flagshim run -- qemu-system-x86_64 …")
    as_user = find_user(user) if user is not None else None
    file = trace or new_trace(cmd[0])
    chosen, how = for_command(engine, asked, file, cmd, bpf=True)
    if chosen is Engine.NOTIFY:
        from flagshim.notifying import run_notify  # noqa: PLC0415  (ptrace can do without)

        outcome = run_notify(cmd, how, as_user)
    elif bpf := bpf_sessions(chosen, how):
        outcome = bpf.run_bpf(cmd, how, as_user)
    else:
        outcome = supervise(cmd, how, as_user)
    sum_up(outcome, file)
    if gate and not _passes(gate, file, outcome):
        return EXIT_GATE
    return _exit_as(outcome.exit_status)


def _passes(gate: Gate, trace: Path, outcome: Outcome) -> bool:
    """Put the gate to the session that was just recorded; CMD's own failure goes before its."""
    try:
        with TraceReader(trace) as reader:
            judgement = gate.judge(reader, session=outcome.session, lost=outcome.lost)
    except FlagshimError as error:
        if not outcome.exit_status:
            raise
        say(f"the gate could not be judged: {error}")
        return True
    announce(judgement)
    return bool(outcome.exit_status) or not judgement.failed


def _exit_as(status: int) -> int:
    """Exit as CMD did: a fatal signal is raised again, without a core file of our own."""
    if status >= 0:
        return status
    number = -status
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number  # not reached, unless the signal cannot be raised here
