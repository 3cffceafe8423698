"""bpf/*.c compiled and loaded by bcc; and, where that fails, the reason in one line."""

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Self

from flagshim.credentials import has_capabilities, mount_namespace_of
from flagshim.engines.bpf.headers import point_bcc_at_headers
from flagshim.errors import FlagshimError
from flagshim.linux.tracing import mount_tracefs_privately

_SOURCES = Path(__file__).parents[2] / "bpf"
_DISTRIBUTION = Path("/usr/lib/python3/dist-packages/bcc/__init__.py")
"""Where Debian puts bcc, which a virtual environment may not see."""
_INSTALL = "apt-get install python3-bpfcc (PyPI's bcc is something else)"
_TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_BPF, _PERFMON, _SYS_ADMIN = 39, 38, 21  # capabilities(7)


class Unavailable(FlagshimError):
    """BPF programs cannot be had here, and why."""


def import_bcc() -> ModuleType:
    """Import the distribution's bcc.

    Raises:
        FlagshimError: it is not there, or does not load.
    """
    try:
        module = importlib.import_module("bcc")
    except ImportError:
        module = None
    except OSError as error:  # libbcc.so, or the LLVM it needs
        raise Unavailable(f"bcc does not load: {error}", _INSTALL) from None
    if module is not None and hasattr(module, "BPF"):
        return module
    return _from_distribution("not installed" if module is None else "another package of that name")


def _from_distribution(otherwise: str) -> ModuleType:
    """Import bcc, which is nothing but Python and ctypes, from outside of a virtual environment."""
    if not _DISTRIBUTION.exists():
        raise Unavailable(f"bcc, which compiles and loads BPF programs: {otherwise}", _INSTALL)
    for name in [name for name in sys.modules if name.partition(".")[0] == "bcc"]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "bcc", _DISTRIBUTION, submodule_search_locations=[str(_DISTRIBUTION.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        del sys.modules["bcc"]
        raise Unavailable(f"bcc does not load: {error}", _INSTALL) from None
    return module


@functools.cache
def started_in() -> str:
    """Return the mount namespace whose view of "/" is ours.

    Asked for the first time before we may go into a copy of it that has tracefs.
    """
    return mount_namespace_of("self")


def check_privileges() -> None:
    """Find out whether the kernel would let us load programs for tracing at all.

    Raises:
        FlagshimError: it would not.
    """
    try:
        started_in()
    except OSError:
        raise Unavailable("/proc is not mounted", "mount -t proc proc /proc") from None
    if not has_capabilities(_SYS_ADMIN) and not has_capabilities(_BPF, _PERFMON):
        raise Unavailable(
            "BPF programs are for root (CAP_BPF and CAP_PERFMON)"
            + (", and unprivileged_bpf_disabled is set" if _is_closed_to_users() else ""),
            "run flagshim as root",
        )
    if _lockdown() == "confidentiality":
        raise Unavailable(
            "kernel lockdown (confidentiality) forbids BPF programs to read memory",
            "boot with lockdown=integrity, or use ptrace: flagshim run, flagshim attach",
        )
    if os.readlink("/proc/self/ns/pid") != _INITIAL_PID_NAMESPACE:
        raise Unavailable(
            "flagshim is in a PID namespace, and BPF programs see the machine's numbers",
            "run it outside the container, or in one with the host's PIDs (--pid=host)",
        )


def _is_closed_to_users() -> bool:
    with contextlib.suppress(OSError), open("/proc/sys/kernel/unprivileged_bpf_disabled") as file:
        return file.read().strip() != "0"
    return False


def _lockdown() -> str:
    with contextlib.suppress(OSError), open("/sys/kernel/security/lockdown") as file:
        return file.read().partition("[")[2].partition("]")[0]
    return ""


def find_tracepoints() -> None:
    """See that there are syscall tracepoints; mount tracefs, for this process alone, if need be.

    Raises:
        FlagshimError: there are none.
    """
    if not any(os.path.isdir(f"{folder}/events") for folder in _TRACEFS):
        try:
            mount_tracefs_privately(_TRACEFS[0])
        except OSError as error:
            raise Unavailable(
                f"tracefs is not mounted, and cannot be here: {error.strerror}",
                f"mount -t tracefs tracefs {_TRACEFS[0]}, on the host if this is a container",
            ) from None
    if not any(os.path.isdir(f"{folder}/events/syscalls") for folder in _TRACEFS):
        raise Unavailable(
            "this kernel has no syscall tracepoints (CONFIG_FTRACE_SYSCALLS)",
            "use a kernel with them, or ptrace: flagshim run, flagshim attach",
        )


def tracefs() -> str:
    """Return where tracefs is mounted, once `find_tracepoints` has seen to that."""
    return next(folder for folder in _TRACEFS if os.path.isdir(f"{folder}/events"))


class Program:
    """One of bpf/*.c in the kernel. A context manager: leaving it takes everything away again."""

    def __init__(self, source: str) -> None:
        """Compile it.

        Args:
            source: a file name in bpf/.

        Raises:
            FlagshimError: no privileges, no bcc, no headers, or it does not compile.
        """
        check_privileges()
        self._bcc = import_bcc()
        try:
            flags = point_bcc_at_headers()
        except FlagshimError as error:
            raise Unavailable(error.message, error.hint) from None
        with _listening() as heard:
            try:
                self.bpf: Any = self._bcc.BPF(
                    src_file=os.fspath(_SOURCES / source), cflags=[*flags, f"-I{_SOURCES}"]
                )
            except Exception as error:  # bcc knows no other kind
                raise _not_compiled(source, str(error), heard()) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach and unload."""
        self.bpf.cleanup()

    def table(self, name: str) -> Any:  # noqa: ANN401  (bcc has no types)
        """Return a map."""
        return self.bpf[name.encode()]

    def skipped(self) -> Counter[str]:
        """Return, by function, how often the kernel came by and did not run it.

        Linux 7.3 does not where another process was preempted in it on that CPU; older kernels
        do not where any BPF program, or bpf(2), was. Of whose call, they do not say. Before
        6.7 they did not count.
        """
        found = Counter[str]()
        for name, function in self.bpf.funcs.items():
            with open(f"/proc/self/fdinfo/{function.fd}") as file:
                found[name.decode()] = skipped_in(file.read())
        return found

    def attach_tracepoint(self, name: str, function: str) -> None:
        """Run a function at a tracepoint, named as in "syscalls:sys_exit_openat".

        Raises:
            FlagshimError: the kernel refuses, or knows no such tracepoint.
        """
        with _listening() as heard:
            try:
                self.bpf.attach_tracepoint(tp=name.encode(), fn_name=function.encode())
            except Exception as error:
                raise _not_loaded(f"at {name}", str(error), heard()) from None

    def load_for_uprobe(self, function: str) -> int:
        """Load a function that is to run at a uprobe; return its descriptor.

        Raises:
            FlagshimError: the kernel refuses.
        """
        with _listening() as heard:
            try:
                return int(self.bpf.load_func(function.encode(), self._bcc.BPF.KPROBE).fd)
            except Exception as error:
                raise _not_loaded(f"for a uprobe ({function})", str(error), heard()) from None


def skipped_in(fdinfo: str) -> int:
    """Return how often a program was not run, of what the kernel tells of its descriptor."""
    found = re.search(r"^recursion_misses:\s*(\d+)$", fdinfo, re.MULTILINE)
    return int(found[1]) if found else 0


class _Heard:
    """What was said on stderr by the libraries bcc is made of."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __call__(self) -> list[str]:
        self._file.seek(0)
        text = self._file.read().decode(errors="backslashreplace")
        return [line.strip() for line in text.splitlines() if line.strip()]


@contextlib.contextmanager
def _listening() -> Iterator[_Heard]:
    """Keep what is written to stderr meanwhile: a page of it, where one line is due."""
    with tempfile.TemporaryFile() as file:
        former = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield _Heard(file)
        finally:
            os.dup2(former, 2)
            os.close(former)


def _not_compiled(source: str, said: str, heard: list[str]) -> "Unavailable":
    cause = next((line for line in heard if "error:" in line or "No such file" in line), said)
    return Unavailable(
        f"bcc does not compile bpf/{source}: {cause}",
        "are its kernel headers whole? apt-get install --reinstall linux-headers-amd64",
    )


def _not_loaded(where: str, said: str, heard: list[str]) -> "Unavailable":
    """Name the cause: the verifier's last complaint, which its statistics follow."""
    complaints = [
        line
        for line in heard
        if not line.startswith(("processed ", "bpf: ", "HINT", ";")) and not line[:1].isdigit()
    ]
    cause = complaints[-1] if complaints else said
    return Unavailable(f"the kernel refuses a BPF program {where}: {cause}", "see flagshim doctor")


def can_write_registers() -> bool:
    """Tell whether a program at a uprobe can write registers here, by loading one.

    Raises:
        FlagshimError: no program can be loaded at all.
    """
    with Program("writes.c") as program:
        try:
            program.load_for_uprobe("writes_register")
        except FlagshimError as error:
            if is_read_only(error):
                return False
            raise
    return True


def is_read_only(error: FlagshimError) -> bool:
    """Tell whether that is the verifier's complaint of a write to struct pt_regs."""
    return "invalid bpf_context access" in error.message
