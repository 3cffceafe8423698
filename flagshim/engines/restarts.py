"""Calls that being stopped cuts short, and how the kernel is made to make them again.

Most restart by themselves. Some return EINTR at once (signal(7), "Interruption of system
calls by stop signals"): only such as have done nothing when they do.
"""

import errno

from flagshim.seccomp import native_numbers

_CUT_SHORT = native_numbers(
    (
        "epoll_wait", "epoll_pwait", "epoll_pwait2", "semop", "semtimedop", "rt_sigtimedwait",
        "recvfrom", "recvmsg", "accept", "accept4", "io_getevents",
    )
)  # fmt: skip
_MASK = (1 << 64) - 1  # results as a register holds them
_EINTR = -errno.EINTR & _MASK
_ERESTARTNOHAND = -514 & _MASK  # include/linux/errno.h


def result_to_restart(result: int, number: int) -> int:
    """Return the result with which a call is made again unless a signal handler runs.

    Args:
        result: of the call, from the register of a thread at the stop of PTRACE_INTERRUPT.
        number: of the call.
    """
    return _ERESTARTNOHAND if result == _EINTR and number in _CUT_SHORT else result
