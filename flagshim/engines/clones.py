"""Children that a program wants untraced.

With CLONE_UNTRACED (clone(2)) a child would have our filter and no tracer, and every open the
rules are about would fail with ENOSYS. So the bit is taken off, and put back for the parent.
"""

from collections.abc import Callable, Sequence
from functools import partial

from flagshim import tracee
from flagshim.engines.registers import poke_argument
from flagshim.linux.memory import read_memory
from flagshim.syscalls import CLONE_UNTRACED, Abi, Kind

_FLAGS_SIZE = 8
"""Of the first member of struct clone_args, clone3(2), in bytes."""


def keep_traced(tid: int, kind: Kind, abi: Abi, values: Sequence[int]) -> Callable[[], None] | None:
    """Take CLONE_UNTRACED off a call that is about to be made.

    Returns:
        What puts it back, to be called when the call returns; None if it was not there.

    Raises:
        ProcessLookupError: the thread was killed.
    """
    if kind is Kind.CLONE:
        if not values[0] & CLONE_UNTRACED:
            return None
        poke_argument(tid, abi, 0, values[0] & ~CLONE_UNTRACED)
        return partial(poke_argument, tid, abi, 0, values[0])
    try:
        former = read_memory(tid, values[0], _FLAGS_SIZE)
        flags = int.from_bytes(former, "little")
        if len(former) < _FLAGS_SIZE or not flags & CLONE_UNTRACED:
            return None
        changed = (flags & ~CLONE_UNTRACED).to_bytes(_FLAGS_SIZE, "little")
        tracee.force_memory(tid, values[0], changed)
    except ProcessLookupError:
        raise
    except OSError:  # not memory, or none that we may look into
        return None
    return partial(tracee.force_memory, tid, values[0], former)
