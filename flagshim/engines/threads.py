"""What the ptrace engine remembers of its tracees between their stops."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flagshim.credentials import Credentials
from flagshim.engines.calls import CallKey, OpenCall, Process


@dataclass(slots=True)
class Thread:
    """A tracee. Linux traces threads; each has its own stops and credentials."""

    tid: int
    process: Process | None = None
    credentials: Credentials | None = None
    """None until looked up."""
    standing: int = 0
    """The number of calls that change credentials, when they were looked up."""
    call: OpenCall | None = None
    """The call whose syscall-exit stop we wait for."""
    suspended: dict[CallKey, OpenCall] = field(default_factory=dict)
    """Calls that the kernel restarts, or that we have it repeat, once the thread runs."""
    put_back: Callable[[], None] | None = None
    """To be called when the clone(2) that the thread is in returns."""
    changing: bool = False
    """Whether it is in a call that may change credentials, root or mount namespace."""
    stopped: bool = False
    """Whether it is in a group-stop."""

    @property
    def in_call(self) -> bool:
        """Whether we wait for the syscall-exit stop of a call of it."""
        return self.call is not None or self.changing or self.put_back is not None
