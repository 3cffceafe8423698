"""What guard and supervisors of one program have in common, and hand on to their successors."""

import os
from dataclasses import dataclass

from flagshim.engines.notify.lanes import Lanes
from flagshim.engines.notify.places import Places
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
    places: Places
    """Which of them does what."""
    wake: int
    poke: int
    """The ends of the pipe by which supervisors wake their guard."""
    alarm: int
    """An eventfd: calls begin to come in quick succession."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that belong to it."""
        return self.listener, self.places.fd, self.wake, self.poke, self.alarm


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
        policy, listener, f"{pid} ({name})", Lanes(), confined, Places(), wake, poke,
        os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
    )  # fmt: skip
