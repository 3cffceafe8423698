"""Becoming CMD ourselves, with a detached helper as tracer.

As strace -D does it: CMD has the PID, parent, session and terminal that flagshim was started
with, and the tracer is a grandchild in a session of its own that holds nothing of the caller's.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from flagshim import descriptors, tracee
from flagshim.engines.command import REPORT, Command, NotStarted
from flagshim.errors import FlagshimError
from flagshim.linux.process import (
    allow_any_tracer,
    is_child_subreaper,
    set_child_subreaper,
    set_name,
    set_title,
)
from flagshim.linux.ptrace import ptrace_seize
from flagshim.saying import Say

_READY = b"ready "


class NotServed(FlagshimError):
    """There is no helper, so nobody but the caller can clean up."""


class HelperDied(NotServed):
    """The helper was killed before it could say a word."""


Work = Callable[[Callable[[], None]], None]
"""What a helper does; it calls what it is given when it is ready."""
Serve = Callable[[int, int, Callable[[], None]], None]


def become_served(
    command: Command, options: int | None, serve: Serve, say: Say, *kept: int
) -> NoReturn:
    """Turn this process into `command`, supervised by a helper that calls `serve`.

    Args:
        command: what to become.
        options: PTRACE_O_* to seize us with; None for an engine that is no tracer.
        serve: called in the helper with our PID, seized; a descriptor that gives a REPORT if
            CMD could not be started, and nothing if it was; and what to call when CMD may start.
        say: where the helper tells of what goes wrong later.
        kept: descriptors that the helper needs.

    Raises:
        FlagshimError: CMD did not start, and this process is not traced or about to end.
    """
    if os.getpid() == 1:
        raise NotServed(
            "the helper of PID 1 would be its child, and end with it", "use flagshim run"
        )
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = os.getpid()

    def work(start: Callable[[], None]) -> None:
        if options is not None:
            tracer = tracee.tracer_of(pid)
            if tracer:
                by = os.fsdecode(tracee.comm(tracer))
                raise FlagshimError(f"it is traced by {by} (PID {tracer})")
            ptrace_seize(pid, options)
        serve(pid, report_read, start)

    # Yama lets only ancestors trace unless one says who else may (prctl(2), PR_SET_PTRACER).
    allow_any_tracer(True)
    try:
        role = "guard" if options is None else "supervisor"
        start_helper(f"{role} of {pid} ({command.name})", work, say, report_read, *kept)
    except NotServed as error:
        raise NotServed(f"cannot be traced by a helper: {error}", "see flagshim doctor") from None
    os.close(report_read)
    allow_any_tracer(False)
    # None of ours is to be pending for CMD, where the caller blocks it.
    signal.sigtimedwait([signal.SIGCHLD], 0)
    try:
        command.become()
    except NotStarted as reason:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        with contextlib.suppress(BrokenPipeError):  # the helper has ended, which is the reason
            os.write(report_write, REPORT.pack(reason.stage, reason.number))
        raise command.failure(reason) from None


def start_helper(title: str, work: Work, say: Say, *kept: int) -> int:
    """Start a process that holds nothing of the caller's, in a session of its own.

    Args:
        title: what ps(1) shows of it.
        work: what it does.
        say: where it tells of what goes wrong once it is ready.
        kept: descriptors that it keeps.

    Returns:
        Its PID, once it is ready.

    Raises:
        NotServed: with what it said when it failed before.
    """
    answer_read, answer_write = os.pipe2(os.O_CLOEXEC)
    with _not_a_reaper():
        middle = os.fork()
        if middle == 0:
            _detach(answer_write, title, work, say, kept)
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(middle, 0)
    os.close(answer_write)
    answer = b""
    while chunk := os.read(answer_read, 4096):
        answer += chunk
    os.close(answer_read)
    if not answer.startswith(_READY):
        if not answer:
            raise HelperDied("the helper ended at once")
        raise NotServed(answer.decode(errors="replace"))
    return int(answer.removeprefix(_READY))


def _detach(answer: int, title: str, work: Work, say: Say, kept: Sequence[int]) -> NoReturn:
    """Be the process between caller and helper, and then the helper."""
    ready = False

    def start() -> None:
        nonlocal ready
        ready = True
        os.write(answer, _READY + b"%d" % os.getpid())
        os.close(answer)

    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        set_name("flagshim")
        set_title(f"flagshim: {title}")
        descriptors.blank(0, 1, 2)
        descriptors.close_all_but(answer, *kept)
        os.chdir("/")  # keeps no filesystem busy
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            # A service manager sends them to everything it started; our end is CMD's.
            signal.signal(number, signal.SIG_IGN)
        work(start)
    except Exception as error:
        text = (isinstance(error, OSError) and error.strerror) or str(error)
        if ready:
            say(f"the {title} failed: {type(error).__name__}: {text}")
        else:
            os.write(answer, text.encode(errors="replace"))
    finally:
        os._exit(0)


@contextlib.contextmanager
def _not_a_reaper() -> Iterator[None]:
    """Keep the orphaned helper from becoming a child of CMD, where the caller is a subreaper."""
    reaper = is_child_subreaper()
    if reaper:
        set_child_subreaper(False)
    yield
    if reaper:
        set_child_subreaper(True)
