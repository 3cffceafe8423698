"""Probes of BPF: what `watch`, `diagnose` and `--engine bpf` need, each thing by itself."""

import contextlib
import errno
import importlib.util
import os
import platform

from flagshim.credentials import has_capabilities
from flagshim.errors import FlagshimError
from flagshim.probes.finding import Answer, limited, probe, works

_COMPILE_SECONDS = 60.0
"""A second is usual; an emulated machine takes half a minute."""
_NEEDLESS = "run, exec and attach work without"
_BPF, _PERFMON, _SYS_ADMIN = 39, 38, 21  # capabilities(7)


@probe("bpf-rights")
def privileges() -> Answer:
    """See whether the kernel lets us load programs: capabilities, sysctls, lockdown."""
    # Not above: pyelftools and bcc are for who uses BPF.
    from flagshim.engines.bpf.program import check_privileges  # noqa: PLC0415

    try:
        check_privileges()
    except FlagshimError as error:
        return _lacking(error)
    held = "CAP_SYS_ADMIN" if has_capabilities(_SYS_ADMIN) else "CAP_BPF and CAP_PERFMON"
    return works(f"we have {held}; unprivileged_bpf_disabled is {_sysctl()}, which is for others")


@probe("bcc", seconds=_COMPILE_SECONDS)
def bcc() -> Answer:
    """Load the library that compiles and loads programs."""
    from flagshim.engines.bpf.program import import_bcc  # noqa: PLC0415

    try:
        module = import_bcc()
    except FlagshimError as error:
        return _lacking(error)
    return works(
        f"bcc {getattr(module, '__version__', '?')}, in {os.path.dirname(module.__file__ or '?')}"
    )


@probe("bpf-headers")
def headers() -> Answer:
    """Look for kernel headers, which bcc's compiler reads."""
    from flagshim.engines.bpf.headers import point_bcc_at_headers  # noqa: PLC0415

    try:
        point_bcc_at_headers()
    except FlagshimError as error:
        return _lacking(error)
    where = os.environ.get("BCC_KERNEL_SOURCE", f"/lib/modules/{platform.release()}")
    return works(f"in {where}; they need not be those of this kernel")


@probe("bpf-watch", seconds=_COMPILE_SECONDS)
def watch() -> Answer:
    """Have the kernel tell of an open of our own."""
    from flagshim.engines.bpf.observer import Observer, Selection  # noqa: PLC0415

    try:
        with Observer(Selection(errnos=(errno.ENOENT,))) as observer:
            observer.start()
            observer.set(own_pid=0)
            observer.watch(os.getpid())
            with contextlib.suppress(FileNotFoundError):
                os.open("/nonexistent/flagshim", os.O_RDONLY)
            told = [raw.path for raw in observer.take()]
    except FlagshimError as error:
        return _lacking(error)
    if b"/nonexistent/flagshim" not in told:
        return limited("the kernel did not tell of an open that failed", "please report it")
    return works("watch and diagnose can see opens")


@probe("bpf-rewrite", seconds=_COMPILE_SECONDS)
def rewrite() -> Answer:
    """Load a program that writes a register."""
    from flagshim.engines.bpf.program import can_write_registers  # noqa: PLC0415

    try:
        if can_write_registers():
            if importlib.util.find_spec("elftools") is None:
                return limited(f"no pyelftools; {_NEEDLESS}", "pip install 'flagshim[bpf]'")
            return works("--engine bpf can take flags off inside the kernel")
    except FlagshimError as error:
        return _lacking(error)
    return limited(
        "a uprobe program may not write registers here, so that there is no --engine bpf",
        "use a kernel that lets it (Linux 7.3 does), or ptrace",
    )


def _lacking(error: FlagshimError) -> Answer:
    return limited(f"{error.message}; {_NEEDLESS}", error.hint)


def _sysctl() -> str:
    try:
        with open("/proc/sys/kernel/unprivileged_bpf_disabled") as file:
            return file.read().strip()
    except OSError:
        return "not there"
