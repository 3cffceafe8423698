"""subprocess.Popen, started through `flagshim exec` as long as one asks for it."""

import functools
import inspect
import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from flagshim.interpreter import ourselves

TraceFor = Callable[[str], str | None]
"""Called with why a command cannot be supervised ("" if it can); returns the trace to add it to,
or None to leave it alone."""
Started = Callable[[str, int], None]
"""Called with the trace and PID of a command that was started."""


class Interception:
    """Puts what subprocess.Popen starts, and all that is built on it, under flagshim.

    `flagshim exec` becomes the command: PID, parent, descriptors, process group, what preexec_fn
    has done and the exit status are as without it.

    Args:
        trace_for: asked about each command.
        started: told of each that is supervised.
    """

    def __init__(self, trace_for: TraceFor, started: Started) -> None:
        self._trace_for = trace_for
        self._started = started
        self._init: Any = None

    def begin(self) -> None:
        """Take the place of Popen.__init__."""
        original = self._init = subprocess.Popen.__init__
        signature = inspect.signature(original)

        @functools.wraps(original)
        def init(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments.get("args")
            argv = _command(bound.arguments)
            trace = self._trace(argv, bound.arguments)
            if argv is None or trace is None:
                original(*bound.args, **bound.kwargs)
                return
            served = [*ourselves(), "exec", "-o", trace, "--", *argv]
            bound.arguments |= {"args": served, "shell": False, "executable": None}
            original(*bound.args, **bound.kwargs)
            popen = bound.arguments["self"]
            popen.args = given  # for CalledProcessError, and for people
            self._started(trace, popen.pid)

        subprocess.Popen.__init__ = init  # type: ignore[method-assign]

    def end(self) -> None:
        """Leave Popen as it was."""
        subprocess.Popen.__init__ = self._init  # type: ignore[method-assign]

    def _trace(self, argv: tuple[str, ...] | None, arguments: Mapping[str, Any]) -> str | None:
        """Return the trace for a command; None to start it as it is."""
        if argv is None or argv[: len(ourselves())] == tuple(ourselves()):
            return None
        return self._trace_for(_obstacle(argv, arguments))


def _command(arguments: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return what Popen would execute; None if Popen is to say what is wrong with it."""
    args = arguments.get("args")
    if isinstance(args, str | bytes | os.PathLike):
        args = [args]
    try:
        words = tuple(os.fsdecode(word) for word in args or ())
    except TypeError:
        return None
    if arguments.get("shell"):
        return (os.fsdecode(arguments.get("executable") or "/bin/sh"), "-c", *words)
    return words or None


def _obstacle(argv: tuple[str, ...], arguments: Mapping[str, Any]) -> str:
    """Return why a command has to be started as it is, or ""."""
    executable = arguments.get("executable")
    if executable and not arguments.get("shell") and os.fsdecode(executable) != argv[0]:
        return "executable="
    found = _find(argv[0], arguments.get("cwd"), arguments.get("env"))
    if found is None:
        return "not found"
    status = os.stat(found)
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) and os.geteuid() != 0:
        return "set-user-ID"
    try:
        with open(found, "rb") as program:
            # An error of exec(2) is to be Popen's OSError, not an exit status.
            return "" if program.read(4).startswith((b"\x7fELF", b"#!")) else "no program"
    except OSError:  # it may be executed and not read
        return ""


def _find(name: str, cwd: object, environment: Mapping[str, str] | None) -> str | None:
    """Return the file that execvpe(3) would find, from `cwd`."""
    folders = [""] if "/" in name else os.get_exec_path(environment)
    start = os.fsdecode(cwd) if isinstance(cwd, str | bytes | os.PathLike) else ""
    for folder in folders:
        path = os.path.join(start, os.fsdecode(folder), name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
