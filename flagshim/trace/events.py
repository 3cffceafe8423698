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
    FORESEEN = "not refused, as foreseen"
    """The notify engine let the kernel make the call as asked, and is not told of the result."""
    NOT_RESCUED_NEW_FILE = "not rescued: it may make a new file"
    NOT_RESCUED_SPECIAL = "not rescued: a FIFO, a socket or a device"
    NOT_RESCUED_PROC = "not rescued: a file of /proc or the like"
    NOT_RESCUED_LINK = "not rescued: its path goes through /proc or /dev/fd"
    NOT_RESCUED_ROOT = "not rescued: its path leaves its directory, in another root"
    NOT_RESCUED_USER = "not rescued: flagshim cannot be the thread's user"
    NOT_RESCUED_CONFINED = "not rescued: the program may be confined by Landlock"
    NOT_RESCUED_STICKY = "not rescued: O_CREAT in a sticky directory"
    NOT_RESCUED_CREATE_LINK = "not rescued: O_CREAT on a symbolic link"
    NOT_RESCUED_MEMORY = "not rescued: the path cannot be read"
    NOT_RESCUED_ASYNC = "not rescued: O_ASYNC changes as well"
    NOT_RESCUED_LARGE = "not rescued: a large file, and no O_LARGEFILE"
    NOT_RESCUED_BUSY = "not rescued: too many opens wait for filesystems"
    NOT_RESCUED_FATAL = "not rescued: supervisors died with it"
    NOT_RESCUED_DESCRIPTORS = "not rescued: flagshim has no descriptor left"
    """The notify engine would have had to open the file for the program, and could not or must
    not: the kernel made the call as asked."""


NOT_RESCUED = "not rescued: "
"""How such a reason begins."""


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
