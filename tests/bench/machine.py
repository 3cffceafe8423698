"""What the figures were taken on; without it they say nothing."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from flagshim import __version__


def describe() -> dict[str, str]:
    """Name the processor, the kernel and the versions of what was measured."""
    return {
        "processor": _processor(),
        "kernel": f"Linux {platform.release()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        "flagshim": __version__,
        "revision": _revision(),
        "Python": platform.python_version(),
        "strace": _version("strace"),
        "QEMU": _version("qemu-system-x86_64"),
    }


def load() -> float:
    """Return the load of the last minute: at the start of a run it is that of others."""
    return os.getloadavg()[0]


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, flags=re.MULTILINE)
    name = model[1] if model else platform.machine()
    virtual = ", virtual machine" if re.search(r"^flags\s*:.*\bhypervisor\b", text, re.M) else ""
    return f"{name}, CPUs: {len(os.sched_getaffinity(0))}{virtual}"


def _version(program: str) -> str:
    """Return the first number in what a program says of its version."""
    if shutil.which(program) is None:
        return "none"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", said.stdout)
    return found[0] if found else "?"


def _revision() -> str:
    """Return the commit of this tree, and whether it was changed since."""
    command = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    said = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "no git"
