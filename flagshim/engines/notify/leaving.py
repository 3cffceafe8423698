"""Why a call is left as the program made it."""

import errno

from flagshim.engines.calls import OpenCall
from flagshim.trace.events import Reason


class MayWait(Exception):
    """It cannot be ruled out that a filesystem has to be waited for."""


class Leave(Exception):
    """The call is to go on as the program made it.

    Args:
        reason: why.
        number: the errno that the kernel will refuse it with; 0 for none, or if nobody knows.
    """

    def __init__(self, reason: Reason, number: int = 0) -> None:
        super().__init__(reason, number)
        self.reason = reason
        self.number = number


def new_file(call: OpenCall) -> Reason:
    """Return why a call that makes a file goes on: its owner is the thread, who keeps the flag."""
    return Reason.NOT_RESCUED_NEW_FILE if call.verdict.clear else Reason.FORESEEN


def because_of(error: OSError, otherwise: Reason) -> Leave:
    """Return why to leave a call: a shortage of ours is not what the program would meet."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return Leave(Reason.NOT_RESCUED_DESCRIPTORS)
    return Leave(otherwise, error.errno or 0)
