"""Probes of seccomp(2): whether a filter can be built here, and installed at what price."""

import errno
import os
import struct

from flagshim.errors import FlagshimError
from flagshim.linux.filters import install_seccomp_filter, libseccomp_version
from flagshim.linux.process import set_no_new_privs
from flagshim.openflags import bits_of
from flagshim.probes.finding import Answer, limited, no, probe, works
from flagshim.probes.tracing import status_field
from flagshim.probes.trial import child_status
from flagshim.rules import BUILT_IN, MACHINE, flag_bits

_ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF_0000)
"""BPF_RET | BPF_K, SECCOMP_RET_ALLOW."""


@probe("seccomp", needed=True)
def seccomp() -> Answer:
    """Install a filter that allows everything, without no_new_privs and with it."""
    refusal = child_status(_install)
    if not refusal:
        if status_field("NoNewPrivs") == "1":
            return works("filters install; no_new_privs is set already, by whoever started us")
        return works("filters install, and set-user-ID programs keep their privileges")
    if refusal in (errno.EACCES, errno.EPERM):
        refusal = child_status(_install_without_privileges)
        if not refusal:
            return limited(
                "filters install with no_new_privs only: set-user-ID programs that CMD starts "
                "run without their privileges",
                "run flagshim as root with CAP_SYS_ADMIN, which root in a container often lacks, "
                "and CMD with -u USER, if CMD needs such programs",
            )
    if refusal < 0:
        return no("a seccomp filter kills who installs another", "have the filter allow seccomp")
    return no(
        f"no filter can be installed: {os.strerror(refusal)}",
        "use a kernel with CONFIG_SECCOMP_FILTER, or a container profile that allows seccomp",
    )


def _install() -> int:
    try:
        install_seccomp_filter(_ALLOW_ALL)
    except OSError as error:
        return error.errno or 255
    return 0


def _install_without_privileges() -> int:
    try:
        set_no_new_privs()
    except OSError as error:
        return error.errno or 255
    return _install()


@probe("libseccomp", needed=True)
def libseccomp() -> Answer:
    """Have libseccomp build the filter of the built-in rule."""
    help_ = "install the library libseccomp, 2.5 or newer (Debian: libseccomp2)"
    try:
        # Not above: pyseccomp does not load where there is no libseccomp.
        from flagshim.seccomp import build_filter  # noqa: PLC0415
    except (ImportError, FlagshimError) as error:
        return no(f"not found: {error}", help_)
    try:
        program = build_filter(flag_bits([BUILT_IN]), bits_of("O_PATH", MACHINE))
    except (OSError, ValueError, RuntimeError) as error:
        return no(f"libseccomp {libseccomp_version()} does not build our filter: {error}", help_)
    return works(
        f"libseccomp {libseccomp_version()} builds our filter, {len(program) // 8} instructions"
    )
