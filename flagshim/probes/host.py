"""Probes of what flagshim runs on: machine, container, CPUs, versions."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess

from ptrace.binding.linux_struct import user_regs_struct

from flagshim import __version__
from flagshim.linux.filters import libseccomp_version
from flagshim.openflags import known_machine
from flagshim.probes.finding import Answer, limited, no, probe, works

_PACKAGES = ("python-ptrace", "pyseccomp", "click", "tabulate")
_QEMU = ("qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm")
_QEMU_SECONDS = 5
_RETRIES_BY_ITSELF = (5, 0, 1)
"""QEMU commit a5804fcf7b22, in 5.1 and 5.0.1."""
_IDENTITY = ["0", "0", "4294967295"]


@probe("architecture", needed=True)
def architecture() -> Answer:
    """See whether the engine knows this machine's flags and registers."""
    machine = platform.machine()
    registers = {name for name, _ in user_regs_struct._fields_}
    if known_machine(machine) and {"rip", "orig_rax", "r10"} <= registers:
        return works(machine)
    if machine == "x86_64":
        return no("this Python has 32 bits, the machine 64", "use a Python of 64 bits")
    return no(f"the ptrace engine does not know {machine}'s registers", "use an x86-64 machine")


@probe("proc", needed=True)
def proc() -> Answer:
    """Read about ourselves what the engine reads about programs."""
    try:
        os.readlink("/proc/self/ns/mnt")
        with open("/proc/self/status"), open("/proc/self/environ"):
            return works("/proc is mounted")
    except OSError as error:
        return no(f"{error.filename}: {error.strerror}", "mount -t proc proc /proc")


@probe("container")
def container() -> Answer:
    """Tell what we are shut up in."""
    found = []
    if os.path.exists("/.dockerenv"):
        found.append("Docker")
    if os.path.exists("/run/.containerenv"):
        found.append("Podman")
    with contextlib.suppress(OSError), open("/run/systemd/container", "rb") as file:
        found.append(file.read().strip().decode(errors="backslashreplace"))
    if kind := os.environ.get("container"):  # noqa: SIM112 (systemd's container interface)
        found.append(kind)
    with contextlib.suppress(OSError), open("/proc/self/uid_map") as file:
        ranges = [line.split() for line in file]
        if ranges != [_IDENTITY]:
            first = " ".join(ranges[0]) if ranges else "nothing"
            found.append(
                f"user namespace (uid_map: {first}; root has no say over files of users "
                "that are not mapped)"
            )
    return works(", ".join(dict.fromkeys(found)) or "none seen")


@probe("cpus")
def cpus() -> Answer:
    """Count the CPUs that we may run on."""
    count = len(os.sched_getaffinity(0))
    if count > 1:
        return works(f"{count} to run on: the engine polls for a moment before it sleeps")
    return limited(
        "one to run on: nobody else runs while the engine polls, so that it does not, and "
        "every stop takes longer",
        "give it a second one (taskset, cpuset)",
    )


@probe("qemu")
def qemu() -> Answer:
    """Ask a QEMU in PATH how old it is: newer ones deal with the refusal by themselves."""
    program = next(filter(None, map(shutil.which, _QEMU)), None)
    if program is None:
        return works("none in PATH")
    try:
        output = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_QEMU_SECONDS,
            check=False,
        ).stdout.decode(errors="backslashreplace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return limited(f"{program} does not tell its version: {error}", "run it by hand")
    return qemu_meaning(program, output)


def qemu_meaning(program: str, output: str) -> Answer:
    """Tell what the output of QEMU's --version means for files shared over 9p."""
    found = re.search(r"version ((\d+)\.(\d+)(?:\.(\d+))?)", output)
    if found is None:
        return limited(f"{program} does not tell its version", "run it by hand")
    version = tuple(int(number or 0) for number in found.groups()[1:])
    if version >= _RETRIES_BY_ITSELF:
        what = "it opens again without O_NOATIME by itself, and flagshim saves it the refusals"
    else:
        what = "it fails where O_NOATIME is refused, and under flagshim does not"
    return works(f"{program} {found[1]}: {what}")


@probe("versions")
def versions() -> Answer:
    """List versions, for whoever reads a report."""
    kernel = os.uname()
    found = [
        f"flagshim {__version__}",
        f"Python {platform.python_version()}",
        f"{kernel.sysname} {kernel.release}",
    ]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} ?")
    found.append(f"libseccomp {libseccomp_version()}")
    return works(", ".join(found))
