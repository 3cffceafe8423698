"""One supervised run: a command, rules, an engine, and the trace they leave."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flagshim import __version__
from flagshim.engines.command import User, command_failure, command_for
from flagshim.engines.ptrace import PtraceEngine, filter_for
from flagshim.rules import MACHINE, Rule
from flagshim.trace.events import text_or_bytes
from flagshim.trace.store import TraceFile
from flagshim.trace.writer import TraceWriter


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    exit_status: int
    """CMD's exit status; minus the signal that ended it."""
    seen: int
    cleared: int
    still_refused: int
    """Calls that failed even without the flag."""
    lost: int
    """Events that are not in the trace."""
    trouble: str
    """Why not."""


def supervise(
    argv: Sequence[str], rules: Sequence[Rule], trace: Path, user: User | None = None
) -> Outcome:
    """Run a command under the ptrace engine until it and all it started have ended.

    Descriptors 0, 1 and those above 2 that were not close-on-exec are CMD's alone
    afterwards: the caller's copies are closed, so that whoever reads the other end of a
    pipe sees it end when CMD closes it.

    Args:
        argv: the command, found through PATH.
        rules: in order; the first that is for a call and flag decides.
        trace: file to add a session to, made if missing.
        user: whom to run the command as; None for ourselves.

    Raises:
        FlagshimError: CMD or the trace is unusable; CMD has not run then.
    """
    _check_command(argv[0])
    inherited = _inherited_descriptors()
    existed = trace.exists()
    file = TraceFile.create_or_extend(trace)
    session_id = file.add_session(_session_row(argv, rules, user))
    file.close()
    writer = TraceWriter(str(trace.absolute()), session_id)
    exit_status = None
    try:
        command = command_for(argv, filter_for(rules), user)
        status = PtraceEngine(rules, writer).run(command, inherited)
        exit_status = os.waitstatus_to_exitcode(status)
    finally:
        writer.close(exit_status)
        if exit_status is None and not existed:
            trace.unlink(missing_ok=True)
    return Outcome(
        exit_status, writer.seen, writer.cleared, writer.still_refused, writer.lost, writer.trouble
    )


def _check_command(command: str) -> None:
    """Find the everyday mistakes before a trace is made; exec(2) finds the others."""
    found = shutil.which(command, os.F_OK) or os.path.isdir(command)
    if not command or not found:
        raise command_failure(command or "''", errno.ENOENT)
    if os.path.isdir(command) and "/" in command:
        raise command_failure(command, errno.EACCES)


def _session_row(
    argv: Sequence[str], rules: Sequence[Rule], user: User | None
) -> dict[str, object]:
    return {
        "started_ns": time.time_ns(),
        "flagshim": __version__,
        "engine": PtraceEngine.name,
        "host": platform.node(),
        "kernel": platform.release(),
        "machine": MACHINE,
        "uid": user.uid if user else os.getuid(),
        "cwd": text_or_bytes(os.getcwdb()),
        "command": json.dumps(list(argv)),
        "rules": json.dumps([_rule_as_json(rule) for rule in rules]),
    }


def _rule_as_json(rule: Rule) -> dict[str, object]:
    fields = asdict(rule)
    del fields["origin"]
    return fields


def _inherited_descriptors() -> list[int]:
    """Return the descriptors above 2 that an exec would hand on."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            if int(name) > 2 and not fcntl.fcntl(int(name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.append(int(name))
    return found
