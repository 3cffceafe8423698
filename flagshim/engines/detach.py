"""Becoming CMD ourselves, with a detached helper as tracer.

As strace -D does it: CMD has the PID, parent, session and terminal that flagshim was started
with, and the tracer is a grandchild in a session of its own that holds nothing of the caller's.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

from flagshim import descriptors
from flagshim.engines.command import REPORT, Command, NotStarted
from flagshim.errors import FlagshimError
from flagshim.linux import TRACE_OPTIONS, allow_any_tracer, ptrace_seize, set_name

_READY = b"ready"


def become_served(command: Command, serve: Callable[[int, int], None]) -> NoReturn:
    """Turn this process into `command`, traced by a helper that calls `serve`.

    Args:
        command: what to become.
        serve: called in the helper with our PID, seized, and a descriptor that gives a REPORT
            if CMD could not be started, and nothing if it was.

    Raises:
        FlagshimError: CMD did not start, and this process is not traced or about to end.
    """
    answer_read, answer_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = os.getpid()
    # Yama lets only ancestors trace unless one says who else may (prctl(2), PR_SET_PTRACER).
    allow_any_tracer(True)
    with _without_child_signal():
        middle = os.fork()
        if middle == 0:
            _detach(answer_write, report_read, lambda: serve(pid, report_read), pid)
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(middle, 0)
    os.close(answer_write)
    os.close(report_read)
    answer = b""
    while chunk := os.read(answer_read, 4096):
        answer += chunk
    os.close(answer_read)
    allow_any_tracer(False)
    if answer != _READY:
        cause = answer.decode(errors="replace") or "the helper ended at once"
        raise FlagshimError(f"cannot be traced by a helper: {cause}", "see flagshim doctor")
    try:
        command.become()
    except NotStarted as reason:
        os.write(report_write, REPORT.pack(reason.stage, reason.number))
        raise command.failure(reason) from None


def _detach(answer: int, report: int, serve: Callable[[], None], pid: int) -> NoReturn:
    """Be the process between caller and helper, and then the helper."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        set_name("flagshim")
        descriptors.blank(0, 1, 2)
        descriptors.close_all_but(answer, report)
        os.chdir("/")  # keeps no filesystem busy
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            # A service manager sends them to everything it started; our end is CMD's.
            signal.signal(number, signal.SIG_IGN)
        try:
            ptrace_seize(pid, TRACE_OPTIONS)
        except OSError as error:
            os.write(answer, (error.strerror or str(error)).encode())
            os._exit(1)
        os.write(answer, _READY)
        os.close(answer)
        serve()
    finally:
        os._exit(0)


@contextlib.contextmanager
def _without_child_signal() -> Iterator[None]:
    """Leave no SIGCHLD pending for CMD from a child that is none of its business."""
    pending_before = signal.SIGCHLD in signal.sigpending()
    yield
    if not pending_before and signal.SIGCHLD in signal.sigpending():
        signal.sigtimedwait([signal.SIGCHLD], 0)
