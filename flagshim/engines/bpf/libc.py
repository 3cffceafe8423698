"""The libc that a process really maps, and where in it opens begin.

Entry points only: there all arguments are in call-clobbered registers, so that nobody looks at
them again once they are changed. The fortified variants (__open64_2) end in a jump to the
plain ones.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from elftools.elf.segments import InterpSegment

from flagshim.errors import FlagshimError

ENTRIES = {
    "open": "libc_open",
    "open64": "libc_open",
    "openat": "libc_openat",
    "openat64": "libc_openat",
    "fcntl": "libc_fcntl",
    "fcntl64": "libc_fcntl",
}
"""Functions of bpf/opens.c by the functions of a libc at whose entry they run."""
_LIBC = re.compile(
    r"(libc\.so\.6|libc-2\.\d+\.so|ld-musl-[\w-]+\.so\.1|libc\.musl-[\w-]+\.so\.1|libc\.so)"
)
_DELETED = " (deleted)"
_USE_PTRACE = "leave --engine bpf out"
_SECONDS = 10
_SCRIPTS_MAX = 5
"""Interpreters that are scripts themselves, binfmt_script in execve(2)."""


@dataclass(frozen=True)
class Libc:
    """A libc as this process can open it, and its name for messages."""

    file: str
    name: str


def libc_of_process(pid: int) -> Libc:
    """Return the libc that a running process has mapped.

    Raises:
        FlagshimError: it has none, as a static program, or its maps are not to be had.
    """
    try:
        with open(f"/proc/{pid}/maps", errors="surrogateescape") as file:
            mapped = [line.rstrip("\n").split(maxsplit=5) for line in file]
    except OSError as error:
        raise FlagshimError(f"process {pid}: its maps: {error.strerror}", "see ps -e") from None
    for addresses, permissions, _, _, _, *name in mapped:
        if not name or "x" not in permissions:
            continue
        path = name[0].removesuffix(_DELETED)
        if _LIBC.fullmatch(os.path.basename(path)):
            # By the mapping: the path may be another file now, or in another mount namespace.
            first, last = (part.lstrip("0") or "0" for part in addresses.split("-"))
            return Libc(f"/proc/{pid}/map_files/{first}-{last}", path)
    raise FlagshimError(
        f"process {pid} maps no libc (a static program, or one in Go), and the bpf engine works "
        "at the entry of libc's functions",
        _USE_PTRACE,
    )


def libc_of_command(program: str, environment: Sequence[bytes]) -> Libc:
    """Return the libc that a program is going to map, as its own loader says.

    Raises:
        FlagshimError: it is a static program, or its loader does not tell.
    """
    program, interpreter = _loaded(program)
    try:
        done = subprocess.run(
            [interpreter, "--list", program],
            env=dict(entry.split(b"=", 1) for entry in environment if b"=" in entry),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FlagshimError(f"{program}: its loader {interpreter}: {error}", _USE_PTRACE) from None
    for line in os.fsdecode(done.stdout).splitlines():
        path = line.partition("=>")[2].partition(" (")[0].strip()
        if _LIBC.fullmatch(os.path.basename(path)):
            return Libc(path, path)
    raise FlagshimError(
        f"{program}: its loader {interpreter} names no libc, and the bpf engine works at the entry "
        "of libc's functions",
        _USE_PTRACE,
    )


def entries_of(libc: Libc) -> dict[int, str]:
    """Return the functions of bpf/opens.c to run, by offset in the file of a libc, in bytes.

    Raises:
        FlagshimError: it is not a libc of 64 bits, or has lost its symbols.
    """
    try:
        with open(libc.file, "rb") as file:
            elf = ELFFile(file)
            table = elf.get_section_by_name(".dynsym") if elf.elfclass == 64 else None
            symbols = (
                [(name, table.get_symbol_by_name(name)) for name in ENTRIES]
                if isinstance(table, SymbolTableSection)
                else []
            )
            found = {
                next(elf.address_offsets(symbol["st_value"])): ENTRIES[name]
                for name, versions in symbols
                for symbol in versions or ()
                if symbol["st_shndx"] != "SHN_UNDEF"
            }
    except (OSError, ELFError, StopIteration) as error:
        raise FlagshimError(f"{libc.name}: {error}", _USE_PTRACE) from None
    if set(found.values()) != set(ENTRIES.values()):
        raise FlagshimError(
            f"{libc.name}: not all of open, openat and fcntl are in it, or it is not of 64 bits",
            _USE_PTRACE,
        )
    return found


def blind_spots(executable: str) -> list[str]:
    """Tell by which ways a program may open files that do not lead through libc's functions.

    Args:
        executable: its file, or /proc/PID/exe.
    """
    found = []
    try:
        with open(executable, "rb") as file:
            elf = ELFFile(file)
            if elf.get_section_by_name(".gopclntab"):
                found.append("it is written in Go, which makes system calls itself")
            table = elf.get_section_by_name(".dynsym")
            if isinstance(table, SymbolTableSection) and table.get_symbol_by_name("syscall"):
                found.append("it uses syscall(2)")
    except (OSError, ELFError):
        pass
    return found


def _loaded(program: str, depth: int = 0) -> tuple[str, str]:
    """Return what exec(2) loads, for a script its interpreter, and the loader of that (elf(5))."""
    try:
        with open(program, "rb") as file:
            line = file.readline(256)
            if line.startswith(b"#!") and depth < _SCRIPTS_MAX:
                return _loaded(os.fsdecode(line[2:].split()[0]), depth + 1)
            file.seek(0)
            elf = ELFFile(file)
            for segment in elf.iter_segments("PT_INTERP"):
                if elf.elfclass == 64 and isinstance(segment, InterpSegment):
                    return program, str(segment.get_interp_name())
    except (OSError, IndexError, ELFError) as error:
        raise FlagshimError(f"{program}: {error}", _USE_PTRACE) from None
    raise FlagshimError(
        f"{program}: a static program, or one of 32 bits, and the bpf engine works at the entry of "
        "libc's functions",
        _USE_PTRACE,
    )
