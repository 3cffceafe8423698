"""What guard and supervisors of one program have in common, and hand on to their successors."""

import fcntl
import os
from dataclasses import dataclass

from flagshim.engines.notify.lanes import Lanes
from flagshim.engines.policy import Policy
from flagshim.engines.roster import Roster


@dataclass(frozen=True)
class Post:
    """A listener, those who serve it, and the memory they share."""

    policy: Policy
    listener: int
    """The descriptor. Calls wait, and are not lost, as long as anybody has it."""
    command: str
    """What is supervised, for ps(1): PID and name."""
    lanes: Lanes
    confined: Roster
    """Processes that have confined themselves (landlock(7)); and which one is the command."""
    baton: int
    """A file that whoever receives calls has a lock on, which ends with its life (flock(2))."""
    wake: int
    poke: int
    """The ends of the pipe by which supervisors wake their guard."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that belong to it."""
        return self.listener, self.baton, self.wake, self.poke


def new_post(policy: Policy, listener: int, pid: int, name: str) -> Post:
    """Return the post for a listener that nobody serves yet.

    Args:
        policy: what to do with programs.
        listener: the descriptor.
        pid: of the command.
        name: its.
    """
    confined = Roster()
    confined.command_started(pid)
    wake, poke = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return Post(
        policy, listener, f"{pid} ({name})", Lanes(), confined, os.memfd_create("flagshim"),
        wake, poke,
    )  # fmt: skip


class Baton:
    """The right to receive calls. One of all supervisors has it at a time."""

    def __init__(self, post: Post) -> None:
        # A lock belongs to an open file description, so each needs one of its own.
        self._fd = os.open(f"/proc/self/fd/{post.baton}", os.O_RDWR | os.O_CLOEXEC)

    def take(self) -> None:
        """Wait until it is ours. The kernel hands it on if who has it is killed."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def try_to_take(self) -> bool:
        """Take it if nobody has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def pass_on(self) -> None:
        """Let another have it."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def drop(self) -> None:
        """Pass it on, for good."""
        os.close(self._fd)
