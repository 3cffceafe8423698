"""Trying something in a child that is thrown away, whatever becomes of it."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn

from flagshim.errors import LIMITS, hint_for
from flagshim.linux.process import is_child_subreaper, set_child_subreaper
from flagshim.linux.ptrace import ptrace_cont

SECONDS = 10.0
"""How long a trial may take."""
_LAST_SECONDS = 2.0
"""How long what was killed may take to be gone."""
_POLL_SECONDS = 0.002

REPORT_IT = "please report it, with the output of flagshim doctor --format json"


class TrialError(Exception):
    """A trial that ended without an answer: it crashed, was killed, or hung."""

    def __init__(self, message: str, hint: str = REPORT_IT) -> None:
        super().__init__(message)
        self.hint = hint


def attempt(look: Callable[[], list[str]], seconds: float = SECONDS) -> list[str]:
    """Return what `look` returns in a child, leaving no process behind.

    The child leads a process group of its own: all that it starts ends with it.

    Raises:
        TrialError: no answer.
    """
    with _responsible(), _memory() as answer:
        pid = _start(look, answer.fileno())
        try:
            ended = _has_ended(pid, seconds)
        finally:
            status = _end_group(pid)
        answer.seek(0)
        text = answer.read()
    if not ended:
        raise TrialError(f"no answer within {seconds:g} seconds")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS:
        raise TrialError("a seccomp filter kills who tries", "have the filter allow it")
    if os.WIFSIGNALED(status):
        raise TrialError(f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    if not text:
        raise TrialError("it ended without a word")
    result: dict[str, list[str]] = json.loads(text)
    if "crash" in result:
        raise TrialError(*result["crash"])
    return result["answer"]


def child_status(action: Callable[[], int]) -> int:
    """Return what `action` returns in a child, 0 to 255; minus the signal that ended it.

    For use within a trial, which bounds it.
    """
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            status = action()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end(pid: int) -> None:
    """Kill and reap a child that may be stopped, or our tracee."""
    os.kill(pid, signal.SIGKILL)
    while os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
        with contextlib.suppress(ProcessLookupError):
            ptrace_cont(pid)  # PTRACE_EVENT_EXIT is a stop that even SIGKILL leaves it in


def _memory() -> BinaryIO:
    try:
        return os.fdopen(os.memfd_create("answer"), "w+b")
    except OSError as error:
        raise TrialError(f"memfd_create: {error.strerror}", "see memfd_create(2)") from None


def _start(look: Callable[[], list[str]], answer: int) -> int:
    try:
        pid = os.fork()
    except OSError as error:
        raise TrialError(
            f"no child can be started: {error.strerror}",
            hint_for(error, LIMITS),
        ) from None
    if pid == 0:
        _try(look, answer)
    with contextlib.suppress(OSError):  # it does so too, and may be gone
        os.setpgid(pid, pid)
    return pid


def _try(look: Callable[[], list[str]], answer: int) -> NoReturn:
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        with contextlib.suppress(OSError):
            set_child_subreaper(True)
        result = {"answer": look()}
    except BaseException as error:
        result = {"crash": [f"{type(error).__name__}: {error}"]}
    try:
        os.write(answer, json.dumps(result).encode())
    finally:
        os._exit(0)


@contextlib.contextmanager
def _responsible() -> Iterator[None]:
    """Have all that comes of a child wait to be reaped by us, and nothing end us before that."""
    former: dict[int, Any] = {}
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        former[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fatal in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(fatal) is signal.SIG_DFL:
            former[fatal] = signal.signal(fatal, _end_us)
    subreaper = is_child_subreaper()
    with contextlib.suppress(OSError):
        set_child_subreaper(True)
    ended_by: int | None = None
    try:
        yield
    except _EndedBy as signalled:
        ended_by = signalled.number
    finally:
        with contextlib.suppress(OSError):
            set_child_subreaper(subreaper)
        for number, handler in former.items():
            signal.signal(number, handler)
        if ended_by is not None:
            signal.raise_signal(ended_by)


class _EndedBy(BaseException):
    """A signal that is our end, once nothing is left behind."""

    def __init__(self, number: int) -> None:
        self.number = number


def _end_us(number: int, _: object) -> NoReturn:
    raise _EndedBy(number)


def _has_ended(pid: int, seconds: float) -> bool:
    """Wait for a child to end, but leave it to be reaped: its ID names the group meanwhile."""
    deadline = time.monotonic() + seconds
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _end_group(leader: int) -> int:
    """Kill and reap a child's process group; return the wait status of the child."""
    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGKILL)
    status = 0
    deadline = time.monotonic() + _LAST_SECONDS
    while time.monotonic() < deadline:  # one in an uninterruptible sleep may take for ever
        try:
            pid, ended = os.waitpid(-leader, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == leader:
            status = ended
        elif not pid:
            time.sleep(_POLL_SECONDS)
    return status
