"""Drop-in replacements: small scripts that run a program through `flagshim exec`."""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flagshim.errors import FlagshimError

_MARK = "# flagshim-wraps: "
_MARK_WITHIN = 1024  # bytes
_QUESTIONS = "'1 --help' | '1 -help' | '1 --version' | '1 -version'"


def write_wrapper(program: str, file: Path, options: Sequence[str], replace: bool) -> Path:
    """Write an executable that stands for a program.

    Args:
        program: looked up in PATH.
        file: what to write, as a whole or not at all.
        options: of `flagshim exec`, baked in.
        replace: whether `file` may exist.

    Returns:
        The program, as it is found now; the wrapper runs that file.

    Raises:
        FlagshimError: there is no such program, it is a wrapper already, or `file` is in use.
    """
    found = shutil.which(program)
    if found is None:
        if os.path.isdir(program):
            raise FlagshimError(f"{program}: a directory", "name a program")
        if os.path.exists(program):
            raise FlagshimError(
                f"{program}: not an executable file in PATH",
                f"check its mode, and write {os.path.join('.', program)} for one in this folder",
            )
        raise FlagshimError(f"{program}: not found", "name an executable program")
    target = Path(found).absolute()
    wrapped = wrapped_by(target)
    if wrapped is not None:
        raise FlagshimError(f"{target}: a wrapper already, of {wrapped}", f"wrap {wrapped} itself")
    try:
        if file.exists() and file.samefile(target):
            raise FlagshimError(f"{file}: is the program itself", "write the wrapper elsewhere")
        if file.is_dir():
            raise FlagshimError(f"{file}: a directory", "name the file to write")
        _write(file, _script(target, options), replace)
    except FileExistsError:
        raise FlagshimError(f"{file}: exists", "give -f to replace it") from None
    except OSError as error:
        raise FlagshimError(f"{file}: {error.strerror}", "write the wrapper elsewhere") from None
    return target


def wrapped_by(file: Path) -> str | None:
    """Return the program that a wrapper stands for; None if `file` is no wrapper."""
    try:
        with open(file, "rb") as stream:
            lines = stream.read(_MARK_WITHIN).splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(_MARK.encode()):
            return os.fsdecode(line.removeprefix(_MARK.encode()))
    return None


def _script(target: Path, options: Sequence[str]) -> bytes:
    if "\n" in str(target):
        raise FlagshimError(f"{target}: a newline in its name", "give it another name")
    command = shlex.join([*_ourselves(), "exec", *options, "--", str(target)])
    return os.fsencode(
        "#!/bin/sh\n"
        "# Made by `flagshim wrap`: runs the program below, unchanged, under flagshim.\n"
        f"{_MARK}{target}\n"
        # A question about the program, asked often and at start-up, not a run of it.
        f'case "$# $1" in {_QUESTIONS}) exec {shlex.quote(str(target))} "$1" ;; esac\n'
        f'exec {command} "$@"\n'
    )


def _ourselves() -> list[str]:
    """Return how to call flagshim from anywhere."""
    script = Path(sys.argv[0])
    if script.name == "flagshim" and os.access(script, os.X_OK):
        return [str(script.absolute())]
    # -P: not what lies in the folder that somebody happens to be in.
    return [sys.executable, "-P", "-m", "flagshim"]


def _write(file: Path, content: bytes, replace: bool) -> None:
    fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(fd, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o755)
        if replace:
            os.rename(temporary, file)
        else:
            os.link(temporary, file)  # fails if it exists, and nobody comes in between
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
