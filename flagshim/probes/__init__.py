"""What this machine allows, found out by trying in children that are thrown away.

>>> for finding in examine():
...     print(finding.probe, finding.status)
"""

import functools
from collections.abc import Iterable, Iterator

from flagshim.probes import bpf, calls, filters, host, noatime, notify, tracing
from flagshim.probes.finding import Finding, Probe, Status
from flagshim.probes.trial import TrialError, attempt

__all__ = [
    "PROBES",
    "Finding",
    "Probe",
    "Status",
    "examine",
    "missing",
    "reason_bpf_unavailable",
    "reason_end_to_end_unavailable",
    "reason_i386_unavailable",
    "reason_notify_unavailable",
    "reason_ptrace_unavailable",
    "reason_seccomp_unavailable",
]

PROBES: tuple[Probe, ...] = (
    host.architecture,
    host.proc,
    tracing.ptrace,
    tracing.yama,
    tracing.syscall_info,
    tracing.exit_kill,
    filters.seccomp,
    filters.libseccomp,
    noatime.end_to_end,
    notify.notify,
    calls.i386,
    calls.x32,
    calls.io_uring,
    calls.openat2,
    bpf.privileges,
    bpf.bcc,
    bpf.headers,
    bpf.watch,
    bpf.rewrite,
    host.container,
    host.cpus,
    host.qemu,
    host.versions,
)


def examine(probes: Iterable[Probe] = PROBES) -> Iterator[Finding]:
    """Ask one probe after the other."""
    return (probe() for probe in probes)


def missing(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings for which `flagshim run` cannot work; empty where it can."""
    needed = {probe.name for probe in PROBES if probe.needed}
    return [f for f in findings if f.status is Status.NO and f.probe in needed]


def _reason(*probes: Probe) -> str | None:
    return next((f"{f.probe}: {f.detail}" for f in examine(probes) if f.status is Status.NO), None)


@functools.cache
def reason_ptrace_unavailable() -> str | None:
    """Say why the ptrace engine cannot trace here; None if it can."""
    return _reason(host.architecture, tracing.ptrace, tracing.syscall_info)


@functools.cache
def reason_seccomp_unavailable() -> str | None:
    """Say why the engine's filter cannot be built or installed here; None if it can."""
    return _reason(filters.libseccomp, filters.seccomp)


@functools.cache
def reason_end_to_end_unavailable() -> str | None:
    """Say why no refused open can be shown here to succeed under flagshim; None if one can."""
    finding = noatime.end_to_end()
    return None if finding.status is Status.WORKS else finding.detail


@functools.cache
def reason_bpf_unavailable() -> str | None:
    """Say why opens cannot be seen by BPF here; None if they can."""
    finding = bpf.watch()
    return None if finding.status is Status.WORKS else finding.detail


@functools.cache
def reason_notify_unavailable() -> str | None:
    """Say why calls cannot be held and answered by a listener here; None if they can."""
    finding = notify.notify()
    return None if finding.status is Status.WORKS else finding.detail


@functools.cache
def reason_i386_unavailable() -> str | None:
    """Say why programs of 32 bits do not run here; None if they do."""
    try:
        return attempt(lambda: [calls.why_no_i386() or ""])[0] or None
    except TrialError as error:
        return str(error)
