"""Probes of ptrace(2): whether we may trace our own children, and if not, who is in the way."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator

from flagshim.linux.ptrace import (
    PTRACE_O_EXITKILL,
    TRACE_OPTIONS,
    WALL,
    ptrace_cont,
    ptrace_entry_info,
    ptrace_seize,
)
from flagshim.probes.finding import Answer, limited, no, probe, works
from flagshim.probes.trial import child_status, end

_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_DENY_PTRACE = "/sys/fs/selinux/booleans/deny_ptrace"
_SEE_PTRACE = "see the line about ptrace"
_EXIT_KILL_SECONDS = 2


@probe("ptrace", needed=True)
def ptrace() -> Answer:
    """Seize a child of our own with all the options that the engine asks for."""
    with _own_child() as pid:
        try:
            ptrace_seize(pid, TRACE_OPTIONS)
        except OSError as error:
            return _refused(pid, error)
    return works("a child of our own can be traced")


def _refused(pid: int, error: OSError) -> Answer:
    """Find out who refuses to let us trace `pid`, our untraced child."""
    if tracer := _tracer_of(pid):
        return no(
            f"children are traced by {tracer} already, and a process can have one tracer only",
            "run flagshim outside of it, or have it not follow children (strace without -f)",
        )
    if error.errno in (errno.EINVAL, errno.EIO):
        return no(
            "the kernel lacks PTRACE_SEIZE (Linux 3.4) or PTRACE_O_EXITKILL (Linux 3.8)",
            "use a newer kernel",
        )
    if (answered := _answer_to_nonsense(pid)) != errno.ESRCH:
        return no(
            f"a seccomp filter answers all of ptrace with {errno.errorcode.get(answered)}, "
            "as Docker's profile did before Linux 4.8",
            "have the container's profile allow ptrace: docker run --cap-add SYS_PTRACE, "
            "or --security-opt seccomp=FILE",
        )
    scope = yama_meaning(_yama_scope(), _has_sys_ptrace())
    if scope.help:
        return no(f"Yama: {scope.detail}", scope.help)
    if error.errno == errno.EACCES:
        return no(*_security_module())
    return no(
        f"{error.strerror}, for no reason that could be found",
        "see ptrace(2), Ptrace access mode checking",
    )


def _tracer_of(pid: int) -> str:
    tracer = status_field("TracerPid", pid)
    if tracer in ("", "0"):
        return ""
    name = "a process"
    with contextlib.suppress(OSError), open(f"/proc/{tracer}/comm", "rb") as file:
        name = file.read().rstrip(b"\n").decode(errors="backslashreplace")
    return f"{name} (PID {tracer})"


def _answer_to_nonsense(pid: int) -> int:
    """Return the errno for resuming who is not our tracee: ESRCH, if the kernel itself answers."""
    try:
        ptrace_cont(pid)
    except OSError as error:
        return error.errno or 0
    return 0


def _security_module() -> tuple[str, str]:
    with contextlib.suppress(OSError), open(_DENY_PTRACE) as file:
        if file.read().startswith("1"):
            return "SELinux has deny_ptrace on", "setsebool deny_ptrace off"
    label = ""
    with contextlib.suppress(OSError), open("/proc/self/attr/current", "rb") as file:
        label = file.read().strip(b"\0\n").decode(errors="backslashreplace")
    return (
        "a security module (SELinux, AppArmor) refuses it" + (f" to {label!r}" if label else ""),
        "see its log (ausearch -m avc, dmesg), and have its policy allow ptrace",
    )


@probe("yama")
def yama() -> Answer:
    """Tell what Yama's sysctl means for us; whether we can trace is the ptrace probe's to say."""
    return yama_meaning(_yama_scope(), _has_sys_ptrace())


def yama_meaning(scope: int | None, has_sys_ptrace: bool) -> Answer:
    """Tell what a value of kernel.yama.ptrace_scope means (Documentation/admin-guide/LSM/Yama.rst).

    Args:
        scope: None where there is no Yama.
        has_sys_ptrace: whether we have CAP_SYS_PTRACE.
    """
    if scope is None:
        return works("not in this kernel")
    if scope in (0, 1):
        whom = "any process of the same user" if scope == 0 else "own children, all run needs"
        return works(f"ptrace_scope is {scope}: {whom}")
    if scope == 2 and has_sys_ptrace:
        return works("ptrace_scope is 2: for CAP_SYS_PTRACE only, which we have")
    if scope == 2:
        return no(
            "ptrace_scope is 2: for CAP_SYS_PTRACE only, even with own children",
            "run flagshim as root (with -u USER), or sysctl kernel.yama.ptrace_scope=1",
        )
    return no(
        f"ptrace_scope is {scope}: for nobody, and not to be changed until the next start",
        "take the setting out of /etc/sysctl.d and start the machine again",
    )


def _yama_scope() -> int | None:
    try:
        with open(_YAMA) as file:
            return int(file.read())
    except OSError:
        return None


def _has_sys_ptrace() -> bool:
    cap_sys_ptrace = 19
    return bool(int(status_field("CapEff") or "0", 16) >> cap_sys_ptrace & 1)


@probe("syscall-info", needed=True)
def syscall_info() -> Answer:
    """Ask what call a stopped child is in."""
    with _own_child() as pid:
        try:
            ptrace_seize(pid, TRACE_OPTIONS)
        except OSError:
            return no("no child can be traced", _SEE_PTRACE)
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, WALL)
        try:
            ptrace_entry_info(pid)
        except OSError as error:
            return no(
                f"no PTRACE_GET_SYSCALL_INFO: {error.strerror}", "use Linux 5.3 or a newer kernel"
            )
    return works("PTRACE_GET_SYSCALL_INFO tells which call a stop is about")


@probe("exit-kill")
def exit_kill() -> Answer:
    """See a tracee end when its tracer does."""
    name_read, name_write = os.pipe()

    def trace_and_exit() -> int:
        pid = _start_child()
        os.write(name_write, str(pid).encode())
        try:
            ptrace_seize(pid, PTRACE_O_EXITKILL)
        except OSError as error:
            return error.errno or 255
        return 0

    refusal = child_status(trace_and_exit)
    tracee = int(os.read(name_read, 32))  # ours, now that it is an orphan: we are a subreaper
    killed = not refusal and _is_killed(tracee)
    if not killed:
        end(tracee)
    if refusal and refusal != errno.EINVAL:
        return no("no child can be traced", _SEE_PTRACE)
    if killed:
        return works("programs end when their supervisor is killed")
    return limited(
        "programs outlive a supervisor that is killed, and every open that it would have "
        "looked at then fails with ENOSYS",
        "do not kill flagshim with SIGKILL before the program has ended",
    )


def _is_killed(pid: int) -> bool:
    """Wait a moment for a child to be killed, and reap it."""
    deadline = time.monotonic() + _EXIT_KILL_SECONDS
    while time.monotonic() < deadline:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone and not os.WIFSTOPPED(status):
            return True
        time.sleep(0.01)
    return False


@contextlib.contextmanager
def _own_child() -> Iterator[int]:
    pid = _start_child()
    try:
        yield pid
    finally:
        end(pid)


def _start_child() -> int:
    """Start a child that does nothing."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                signal.pause()
        finally:
            os._exit(0)
    return pid


def status_field(name: str, pid: int | str = "self") -> str:
    """Return a field of /proc/PID/status (proc(5)), or "" where there is none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
    return ""
