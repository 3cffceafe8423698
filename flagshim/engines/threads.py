"""What the ptrace engine remembers of its tracees between their stops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flagshim.credentials import Credentials
from flagshim.rules import Rule, Verdict
from flagshim.syscalls import Abi, Arguments, Kind

CallKey = tuple[int, ...]
"""Instruction pointer, stack pointer, number and arguments of a call.

The same call made again by the kernel or by us has the same key; one that a signal
handler makes in between has another stack pointer.
"""


@dataclass(slots=True)
class OpenCall:
    """A call that carries a flag of interest, from its first stop to its final result."""

    key: CallKey
    kind: Kind
    abi: Abi
    arguments: Arguments
    values: CallKey
    """The six arguments, as they were in the registers."""
    time_ns: int
    flags: int
    path: bytes | None
    verdict: Verdict
    predicted: bool = False
    """Whether `clear` holds bits whose refusal was foreseen."""
    owner: int | None = None
    clear: int = 0
    """Bits to take off at the next try."""
    cleared: int = 0
    """Bits taken off at the last try."""
    rules: list[str] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    """Errnos of the tries the kernel refused."""
    last_error: str | None = None
    """What the program will have seen if the call is not made again."""
    tries: int = 0
    borrowed: list[tuple[int, bytes]] = field(default_factory=list)
    """(address, former content) of tracee memory to put back when the call returns."""


@dataclass(slots=True)
class Process:
    """What the threads of a thread group have in common."""

    pid: int
    program: bytes
    rules: Sequence[Rule]
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """By flags, where no rule asks for the path."""


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
