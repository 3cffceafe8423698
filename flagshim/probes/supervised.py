"""One open under the real engine. Where there is no engine this module does not import."""

import os
import sys

from flagshim.engines.command import command_for
from flagshim.engines.policy import Policy
from flagshim.engines.ptrace import PtraceEngine, filter_for
from flagshim.engines.roster import Roster
from flagshim.engines.sink import Sink
from flagshim.engines.stops import Stops
from flagshim.rules import BUILT_IN
from flagshim.trace.events import Decision, OpenEvent

# It becomes the other user by itself: the Python that runs us may be root's alone.
_OPEN = """
import os, sys
user, path = sys.argv[1:]
if user:
    os.setresuid(int(user), int(user), int(user))
try:
    os.open(path, os.O_RDONLY | os.O_NOATIME)
except OSError as error:
    sys.exit(error.errno)
"""


def open_supervised(user: str, path: str) -> tuple[int, list[str | bytes | None]]:
    """Open `path` with O_NOATIME under the engine, as `user` unless that is "".

    Returns:
        The errno of the open, 0, or minus a fatal signal; and the paths of the opens that
        the engine cleared the flag from and saw succeed, None where not known.

    Raises:
        FlagshimError: the engine does not work here.
    """
    sink = _Opened()
    argv = [sys.executable, "-P", "-s", "-S", "-c", _OPEN, user, path]
    policy = Policy([BUILT_IN])
    command = command_for(argv, filter_for(policy), None)
    status = PtraceEngine(policy, sink, Roster()).run(command, [], Stops())
    return os.waitstatus_to_exitcode(status), sink.paths


class _Opened(Sink):
    """Keeps what a trace would say was opened thanks to us."""

    def __init__(self) -> None:
        self.paths: list[str | bytes | None] = []

    def record(self, event: OpenEvent) -> None:
        if event.decision == Decision.CLEARED and event.errno is None:
            self.paths.append(event.path)

    def blind_spot(self, kind: str, program: str | bytes) -> None:
        """There is none in an open."""

    def flush(self) -> bool:
        return True

    def flush_if_due(self) -> None:
        """There is nothing to hand on."""
