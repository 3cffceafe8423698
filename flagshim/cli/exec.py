"""`flagshim exec`."""

import signal
from pathlib import Path

import click

from flagshim.cli.engine import Engine, engine_option, for_command
from flagshim.cli.options import (
    COMMAND_SETTINGS,
    command_argument,
    command_from,
    trace_option,
    user_option,
)
from flagshim.cli.supervision import Asked, supervision_options
from flagshim.engines.command import find_user
from flagshim.session import become
from flagshim.trace.location import shared_trace


@click.command(
    context_settings=COMMAND_SETTINGS,
    epilog="Example: flagshim exec -- qemu-system-x86_64 -daemonize -pidfile vm.pid …",
)
@user_option
@trace_option("PROGRAM.db in $XDG_STATE_HOME/flagshim")
@engine_option(Engine.PTRACE, Engine.NOTIFY, Engine.AUTO)
@supervision_options
@command_argument
def exec(  # noqa: A001  (the command's name)
    user: str | None,
    trace: Path | None,
    engine: str,
    asked: Asked,
    cmd: tuple[str, ...],
) -> int:
    """Become CMD: same PID, same parent, same terminal, with a detached helper as supervisor.

    For whoever starts CMD and watches it by its PID: libvirt, systemd, runit, a script that
    reads a pidfile. The helper follows CMD when it turns itself into a daemon, and ends after
    the last process that CMD started. It holds nothing of the caller's, so there is no last
    line on stderr; see the trace, and syslog for its troubles.

    Exit status: CMD's own, because it is CMD that exits. Before: 125, 126 and 127 as for run.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C ends us as it would end CMD
    cmd = command_from(cmd, "flagshim exec -- qemu-system-x86_64 …")
    as_user = find_user(user) if user is not None else None
    file = trace or shared_trace(cmd[0])
    chosen, how = for_command(engine, asked, file, cmd, bpf=False)
    if chosen is Engine.NOTIFY:
        from flagshim.notifying import become_notify  # noqa: PLC0415  (ptrace can do without)

        become_notify(cmd, how, as_user)
    become(cmd, how, as_user)
