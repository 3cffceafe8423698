"""Probe of what the notify engine needs: one call, held and answered as that engine does it."""

import errno
import os
import socket

from flagshim import tracee
from flagshim.errors import FlagshimError, hint_for
from flagshim.linux.files import AT_FDCWD, RESOLVE_NO_MAGICLINKS, openat2
from flagshim.linux.filters import install_seccomp_listener
from flagshim.linux.libc import address_of
from flagshim.linux.pidfds import duplicate_of, open_thread
from flagshim.linux.process import set_no_new_privs
from flagshim.openflags import bits_of
from flagshim.probes.finding import Answer, limited, probe, works
from flagshim.probes.trial import child_status, end
from flagshim.rules import BUILT_IN, MACHINE, flag_bits

_USE_PTRACE = "use --engine ptrace, which needs none of it"
_PATH = b"/proc"
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL)
_FOREIGN, _DESCRIPTOR, _HANDED, _LOOKUP = 201, 202, 203, 204
"""Stages at which the one that answers may fail, beyond any errno."""


@probe("notify")
def notify() -> Answer:
    """Have a child hold a call of another, look into it, and give it a descriptor."""
    try:
        # Not above: pyseccomp does not load where there is no libseccomp.
        from flagshim.seccomp import build_listener_filter  # noqa: PLC0415

        program = build_listener_filter(flag_bits([BUILT_IN]), bits_of("O_PATH", MACHINE))
    except (ImportError, FlagshimError, OSError, ValueError, RuntimeError) as error:
        return limited(f"no filter: {error}", "install libseccomp 2.5.2 or newer")
    ours, theirs = socket.socketpair()
    asker = os.fork()
    if asker == 0:
        _ask(program, theirs)
    theirs.close()
    message, fds, _, _ = socket.recv_fds(ours, 4, 1)
    if not fds:
        os.waitpid(asker, 0)
        return _not_installed(int.from_bytes(message, "little"))
    # A sibling of who asks, as a supervisor is one: Yama lets ancestors alone look into it.
    answer = child_status(lambda: _answer(fds[0]))
    os.close(fds[0])
    if answer:
        end(asker)
        return _not_answered(answer)
    if os.waitpid(asker, 0)[1]:
        return limited("a call was answered, and did not return what it was given", _USE_PTRACE)
    return works("calls can be held and answered: run --engine notify can work here")


def _ask(program: bytes, channel: socket.socket) -> None:
    status = 1
    try:
        try:
            listener = install_seccomp_listener(program)
        except PermissionError:
            set_no_new_privs()
            listener = install_seccomp_listener(program)
        socket.send_fds(channel, [b"l"], [listener])
        os.close(listener)
        fd = os.open(_PATH, os.O_RDONLY | os.O_NOATIME)
        status = os.readlink(f"/proc/self/fd/{fd}") != "/"
    except OSError as error:
        channel.send((error.errno or 255).to_bytes(4, "little"))
    finally:
        os._exit(status)


def _answer(listener_fd: int) -> int:
    from flagshim.engines.notify.listener import (  # noqa: PLC0415  (only where it is needed)
        NOTIFICATION_SIZE,
        Listener,
        notification_in,
    )

    listener = Listener(listener_fd)
    memory = bytearray(NOTIFICATION_SIZE)
    try:
        while not listener.receive(address_of(memory)):
            pass
        call = notification_in(bytes(memory))
        if tracee.read_path(call.tid, call.arguments[1]) != _PATH:
            return _FOREIGN
        try:
            os.close(duplicate_of(open_thread(call.tid), 0))
        except OSError as error:
            return _DESCRIPTOR if error.errno in _FORBIDDEN else error.errno or _DESCRIPTOR
        try:
            os.close(openat2(AT_FDCWD, _PATH, os.O_PATH, 0, RESOLVE_NO_MAGICLINKS))
        except OSError:
            return _LOOKUP
        listener.answer(call.id, listener.give(call.id, os.open("/", os.O_RDONLY), 0))
    except OSError as error:
        return error.errno or _HANDED
    return 0


def _not_installed(number: int) -> Answer:
    if number == errno.EBUSY:
        cause = "a seccomp filter that we are under has a listener already (a container runtime's?)"
        return limited(cause, _USE_PTRACE)
    if number == errno.EINVAL:
        return limited("the kernel is older than Linux 5.19 (WAIT_KILLABLE_RECV)", _USE_PTRACE)
    cause = os.strerror(number) if number else "who tried was killed"
    return limited(f"no filter with a listener can be installed: {cause}", _USE_PTRACE)


def _not_answered(stage: int) -> Answer:
    if stage == _FOREIGN:
        cause = "a process may not read the memory of one that it did not start (Yama?)"
        return limited(cause, "run flagshim as root, or use --engine ptrace")
    if stage == _LOOKUP:
        cause = "openat2(2) is forbidden: a filter that we are under (another flagshim's?)"
        return limited(cause, _USE_PTRACE)
    if stage == _DESCRIPTOR:
        return limited("descriptors of other processes cannot be had: pidfd_getfd(2)", _USE_PTRACE)
    cause = os.strerror(stage) if 0 < stage < _FOREIGN else f"stage {stage}"
    hint = hint_for(OSError(stage, cause), _USE_PTRACE)
    return limited(f"a held call cannot be answered: {cause}", hint)
