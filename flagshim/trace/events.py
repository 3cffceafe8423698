"""What flows from an engine to the trace table: one record for each open that was looked at."""

from enum import StrEnum
from typing import NamedTuple


class Decision(StrEnum):
    """What was done with the open flags of a call."""

    CLEARED = "cleared"
    KEPT = "kept"


class Reason(StrEnum):
    """Why it was done."""

    REFUSED = "refused by the kernel"
    """The call was made as asked, the kernel refused it, it was made again without the flag."""
    PREDICTED = "owner is not fsuid"
    """The file's owner and the thread's fsuid differ and it has no CAP_FOWNER: cleared at once."""
    ALWAYS = "rule says always"
    ALLOWED = "allowed by the kernel"
    """The kernel did not object to the flags as asked."""
    FAILED = "failed for another reason"
    """The call failed as asked, and not in the way that a rule answers to."""
    NO_RULE = "no rule matches"
    OUT_OF_REACH = "out of the engine's reach"
    """A rule matches, but the call did not come by the way that the bpf engine looks at."""
    NOT_BEGUN = "refused before it began"
    """Only watched, and the kernel never began it: a seccomp filter was asked before."""
    WATCHED = "only watched"
    """Nobody meant to change it."""


class OpenEvent(NamedTuple):
    """One call that carried open flags a rule is about, after it was finished.

    A call interrupted and restarted by the kernel, or repeated without a flag by
    flagshim, is one event. Fields are the columns of the table `event`, in order.
    """

    time_ns: int
    """Nanoseconds since the epoch at the moment the call was first seen."""
    tid: int
    pid: int
    """Thread group; `tid` and `pid` as the supervisor's PID namespace numbers them."""
    program: str | bytes
    """Base name of the executable file."""
    syscall: str
    abi: str
    path: str | bytes | None
    """As the program asked; None where the call names none or its memory was not readable."""
    resolved: str | bytes | None
    """The opened file's path as /proc gives it; without a file, the directory joined to `path`."""
    access: str
    """r, w, rw, or - for a call that does not say (F_SETFL)."""
    flags_before: int
    flags_after: int
    """Open flags of the tracee's architecture, as the program gave and as the kernel got them."""
    decision: str
    rule: str | None
    reason: str
    owner_uid: int | None
    """Owner of the file as the supervisor's user namespace sees it; None where not looked at."""
    fsuid: int | None
    """Filesystem user ID of the thread, credentials(7); None where not looked at."""
    fd: int | None
    """The descriptor returned (0 for F_SETFL), None if the call failed or never returned."""
    errno: str | None
    """Name of the error (EPERM), None if the call succeeded or never returned."""
    tries: int
    """How many times the kernel was asked."""


def text_or_bytes(name: bytes) -> str | bytes:
    """Return text where the bytes are UTF-8, the bytes themselves where not."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name
