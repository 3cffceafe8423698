"""The probe that does it all: an open that the kernel refuses, made under the engine."""

import errno
import os
import sys

from flagshim.errors import FlagshimError
from flagshim.probes.finding import Answer, limited, no, probe, works
from flagshim.probes.trial import REPORT_IT, attempt

_FOREIGN = ("/etc/passwd", "/etc/os-release", "/etc", "/usr", "/", "/proc/version")
"""What everybody may read, and usually nobody but root owns."""
_OTHER_USERS = (65534, 1, 1000)
_SEE_OTHERS = "see the other lines that say no"


@probe("end-to-end", needed=True)
def end_to_end() -> Answer:
    """Open a file of somebody else with O_NOATIME, without flagshim and with it."""
    user, path = attempt(_refused_open, seconds=3)
    who = f"user {user or os.geteuid()}"
    if not path:
        also = "" if user or os.geteuid() else ", and there is no other user to become"
        return limited(
            f"not tried: {who} is refused O_NOATIME on none of the files that were tried{also}",
            "try it where, and as whom, programs fail because of O_NOATIME",
        )
    try:
        # Not above: it does not load where there is no libseccomp, or no engine.
        from flagshim.probes.supervised import open_supervised  # noqa: PLC0415
    except (ImportError, FlagshimError, OSError, KeyError) as error:
        return no(f"the engine cannot be loaded: {error}", _SEE_OTHERS)
    try:
        code, traced = open_supervised(user, path)
    except FlagshimError as error:
        return no(error.message, _SEE_OTHERS)
    except OSError as error:
        return no(f"{error.filename}: {error.strerror}", _SEE_OTHERS)
    if code:
        cause = os.strerror(code) if code > 0 else f"killed by signal {-code}"
        return no(f"{who} opening {path} under flagshim: {cause}", _SEE_OTHERS)
    outcome = f"{who} is refused O_NOATIME on {path}, and under flagshim is not"
    if traced == [None]:
        return limited(
            f"{outcome}; but the names of files cannot be read out of programs",
            "have the container's profile allow process_vm_readv, and the user read the file "
            f"{os.path.realpath(sys.executable)}",
        )
    if traced != [path]:
        return no(f"{outcome}; but the trace would say that this was opened: {traced}", REPORT_IT)
    return works(outcome)


def _refused_open() -> list[str]:
    """Return [a user to become, or ""; a path that O_NOATIME is refused on, or ""]."""
    user = _become_another() if os.geteuid() == 0 else ""
    return [user, next(filter(_is_refused, _FOREIGN), "")]


def _become_another() -> str:
    """Become an ordinary user for good; "" if there is none (user_namespaces(7))."""
    for user in _OTHER_USERS:
        try:
            os.setresuid(user, user, user)
        except OSError:
            continue
        return str(user)
    return ""


def _is_refused(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOATIME))
    except OSError as error:
        return error.errno == errno.EPERM
    return False
