"""The filter that lets only interesting calls stop.

Built by libseccomp, so that numbers, register widths and foreign ABIs are its business.
Everything that is not about a rule's flags is allowed without looking at arguments, which
lets the kernel answer from its per-syscall bitmap (commit f9d480b6ffbe, Linux 5.11).
"""

import fcntl
import functools
import tempfile
from collections.abc import Callable, Iterable

from flagshim.errors import FlagshimError
from flagshim.syscalls import (
    ABI_BY_AUDIT_ARCH,
    ARGUMENTS,
    CLONE_UNTRACED,
    GROUP_CALLS,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_SET_MODE_FILTER,
    STANDING_CALLS,
    Kind,
)

try:
    import pyseccomp
except (OSError, RuntimeError) as error:
    raise FlagshimError(
        f"libseccomp cannot be loaded: {error}",
        "install it (Debian: libseccomp2); if it is there, see ulimit -n and ulimit -u",
    ) from None

COOKIE = 0xF1A0
"""High bits of the return data of a stop of ours, to tell it from the program's own."""
_KIND_BY_RETURN_DATA = {COOKIE | kind: kind for kind in Kind}


def build_filter(flag_bits: Iterable[int], o_path: int, leaves: bool = False) -> bytes:
    """Return the classic BPF program that traces opens carrying any of `flag_bits`.

    Args:
        flag_bits: single bits, on this machine's architecture.
        o_path: the bit of O_PATH. An O_PATH open never stops: openat(2) ignores every
            flag we could clear, and openat2(2) refuses them with EINVAL, as it should.
        leaves: whether there may be processes that the filter stays with and the tracer does
            not. A call that would stop fails with ENOSYS there, so the filter keeps away from
            those that no program can do without: setuid(2) and its like, clone(2).
    """
    program = _filter_of_opens(flag_bits, o_path, _trace)
    if not leaves:
        for name in STANDING_CALLS:
            program.add_rule(_trace(Kind.STANDING), name)
        untraced = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_UNTRACED, CLONE_UNTRACED)
        program.add_rule(_trace(Kind.CLONE), "clone", untraced)
        program.add_rule(_trace(Kind.CLONE3), "clone3")
        _add_listeners(program, _trace)
    return _exported(program)


def build_listener_filter(flag_bits: Iterable[int], o_path: int) -> bytes:
    """Return the classic BPF program that asks a listener about such opens (seccomp_unotify(2)).

    And about those that confine themselves with landlock(7): what they may not open must not be
    opened for them. And about those that change groups, which else need not be looked at.
    """
    program = _filter_of_opens(flag_bits, o_path, _notify)
    _add_listeners(program, _notify)
    program.add_rule(_notify(Kind.LANDLOCK), "landlock_restrict_self")
    for name in GROUP_CALLS:
        program.add_rule(_notify(Kind.GROUPS), name)
    return _exported(program)


def _filter_of_opens(
    flag_bits: Iterable[int], o_path: int, action: Callable[[Kind], int]
) -> "pyseccomp.SyscallFilter":
    program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    # An ABI without a table here runs as it would alone.
    program.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ALLOW)
    if program.exist_arch(pyseccomp.Arch.X86_64):
        program.add_arch(pyseccomp.Arch.X86)
        program.add_arch(pyseccomp.Arch.X32)

    for kind in (Kind.OPEN, Kind.OPENAT, Kind.OPEN_BY_HANDLE_AT):
        call = ARGUMENTS[kind]
        for bit in flag_bits:
            flag_set = pyseccomp.Arg(call.flags, pyseccomp.MASKED_EQ, bit | o_path, bit)
            program.add_rule(action(kind), call.syscall, flag_set)
    for bit in flag_bits:
        command = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFF_FFFF, fcntl.F_SETFL)
        flag_set = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, bit, bit)
        for name in ("fcntl", "fcntl64"):
            program.add_rule(action(Kind.SETFL), name, command, flag_set)
    # Its flags are in memory, where a filter cannot look.
    program.add_rule(action(Kind.OPENAT2), "openat2")
    program.add_rule(action(Kind.IO_URING), "io_uring_setup")
    return program


def _add_listeners(program: "pyseccomp.SyscallFilter", action: Callable[[Kind], int]) -> None:
    install = pyseccomp.Arg(0, pyseccomp.EQ, SECCOMP_SET_MODE_FILTER)
    listener = SECCOMP_FILTER_FLAG_NEW_LISTENER
    with_one = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, listener, listener)
    program.add_rule(action(Kind.LISTENER), "seccomp", install, with_one)


def _exported(program: "pyseccomp.SyscallFilter") -> bytes:
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


_NAMES: dict[Kind, tuple[str, ...]] = {
    **{kind: (call.syscall,) for kind, call in ARGUMENTS.items()},
    Kind.SETFL: ("fcntl", "fcntl64"),
    Kind.STANDING: STANDING_CALLS,
    Kind.IO_URING: ("io_uring_setup",),
    Kind.LISTENER: ("seccomp",),
    Kind.CLONE: ("clone",),
    Kind.CLONE3: ("clone3",),
    Kind.LANDLOCK: ("landlock_restrict_self",),
    Kind.GROUPS: GROUP_CALLS,
}
_NOT_TRACED = {Kind.LANDLOCK, Kind.GROUPS}
_NOT_LISTENED_TO = {Kind.STANDING, Kind.CLONE, Kind.CLONE3}


def traced_calls() -> dict[tuple[int, int], Kind]:
    """Return what the filter would trace whatever its flags, by (AUDIT_ARCH_*, number).

    For a tracer that sees every call and has no filter to tell it which ones matter.
    """
    return _numbered(_NAMES.keys() - _NOT_TRACED)


@functools.cache
def listened_calls() -> dict[tuple[int, int], Kind]:
    """Return what the filter asks its listener about, by (AUDIT_ARCH_*, number)."""
    return _numbered(_NAMES.keys() - _NOT_LISTENED_TO)


def _numbered(kinds: Iterable[Kind]) -> dict[tuple[int, int], Kind]:
    found = {}
    for audit_arch in ABI_BY_AUDIT_ARCH:
        for kind in kinds:
            for name in _NAMES[kind]:
                number = pyseccomp.resolve_syscall(audit_arch, name)
                if number >= 0:  # negative: libseccomp's own, for what an ABI does not have
                    found[audit_arch, number] = kind
    return found


def native_numbers(names: Iterable[str]) -> frozenset[int]:
    """Return the numbers that calls have in this machine's own ABI; those it has."""
    numbers = (pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) for name in names)
    return frozenset(number for number in numbers if number >= 0)


def _trace(kind: Kind) -> int:
    return int(pyseccomp.TRACE(COOKIE | kind))


def _notify(_: Kind) -> int:
    return int(pyseccomp.NOTIFY)


def kind_of(return_data: int) -> Kind | None:
    """Return what a seccomp stop is about, or None if another filter asked for it."""
    return _KIND_BY_RETURN_DATA.get(return_data)
