"""Where traces are kept when nobody says where."""

import os
import stat
import time
from pathlib import Path

from flagshim.errors import FlagshimError


def state_directory() -> Path:
    """The folder for traces without a name of their own; it may not exist yet.

    `$XDG_STATE_HOME/flagshim`, or `~/.local/state/flagshim` where the variable is
    unset, empty or relative (XDG Base Directory Specification, "a relative path is
    to be ignored").

    Raises:
        FlagshimError: there is no home directory either.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "flagshim"
    try:
        return Path.home() / ".local" / "state" / "flagshim"
    except RuntimeError as error:
        raise FlagshimError(
            "there is no home directory to keep traces in", "set HOME or XDG_STATE_HOME"
        ) from error


def latest_trace(directory: Path) -> Path:
    """The trace in `directory` (a regular file `*.db`) that was written to last.

    Raises:
        FlagshimError: there is none, or the folder cannot be listed.
    """
    try:
        with os.scandir(directory) as entries:
            traces = [directory / entry.name for entry in entries if entry.name.endswith(".db")]
    except (FileNotFoundError, NotADirectoryError):
        traces = []
    except OSError as error:
        raise FlagshimError(
            f"{directory}: the traces there cannot be listed: {error.strerror}",
            "name a TRACE",
        ) from error
    modified = {trace: moment for trace in traces if (moment := _modified_ns(trace)) is not None}
    if not modified:
        raise FlagshimError(
            f"there is no trace in {directory}",
            "run `flagshim run -- CMD` first or name a TRACE",
        )
    return max(modified, key=lambda trace: modified[trace])


def _modified_ns(trace: Path) -> int | None:
    """Time of the last write to a trace; None if it is no regular file or has gone.

    While a supervisor runs, SQLite writes to the file with `-wal` behind its name and
    leaves the trace itself alone until a checkpoint, https://sqlite.org/wal.html.
    """
    try:
        status = os.stat(trace)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    try:
        return max(status.st_mtime_ns, os.stat(f"{trace}-wal").st_mtime_ns)
    except OSError:
        return status.st_mtime_ns


def new_trace(command: str) -> Path:
    """Return a name, not in use, for the trace of one run of `command`; makes the folder.

    Raises:
        FlagshimError: the folder cannot be made.
    """
    moment = time.strftime("%Y%m%dT%H%M%S")
    return _made(state_directory()) / f"{moment}-{os.getpid()}-{_file_name(command)}.db"


def shared_trace(command: str) -> Path:
    """Return the name of the one trace for all runs of `command`; makes the folder.

    Raises:
        FlagshimError: the folder cannot be made.
    """
    return _made(state_directory()) / f"{_file_name(command)}.db"


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlagshimError(
            f"the folder of traces {os.fspath(directory)!r} cannot be made: {error.strerror}",
            "name a trace with -o FILE",
        ) from error
    return directory


def _file_name(command: str) -> str:
    """Return the base name of a command, fit for a file name anywhere."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "_"
                   for c in os.path.basename(command))  # fmt: skip
    return name[:40] or "cmd"
