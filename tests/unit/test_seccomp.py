"""What the filter answers, found by running it: classic BPF is small enough to interpret."""

import struct

import pytest

from flagshim.seccomp import COOKIE, build_filter, build_listener_filter, kind_of, listened_calls
from flagshim.syscalls import Kind

NOATIME, DIRECT, O_PATH = 0o1000000, 0o40000, 0o10000000
X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, TRACE, USER_NOTIF = 0x7FFF0000, 0x7FF00000, 0x7FC00000
F_SETFL, F_GETFL = 4, 3
UNTRACED = 0x800000


def answer(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Interpret the classic BPF that seccomp(2) accepts."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = [struct.unpack_from("=HBBI", program, i) for i in range(0, len(program), 8)]
    accumulator = position = 0
    for _ in range(len(code)):
        op, jump_true, jump_false, k = code[position]
        position += 1
        if op == 0x20:  # ld [k]
            accumulator = int.from_bytes(data[k : k + 4], "little")
        elif op == 0x54:  # and
            accumulator &= k
        elif op == 0x05:  # ja
            position += k
        elif op in (0x15, 0x25, 0x35):  # jeq, jgt, jge
            true = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[op]
            position += jump_true if true else jump_false
        elif op == 0x06:  # ret
            return k
        else:
            raise AssertionError(f"unknown instruction {op:#x}")
    raise AssertionError("fell off the end")


@pytest.fixture(scope="module")
def program() -> bytes:
    return build_filter([NOATIME], O_PATH)


TRACED = [
    (X86_64, 2, (0, NOATIME), Kind.OPEN),
    (X86_64, 257, (0, 0, NOATIME), Kind.OPENAT),
    (X86_64, 257, (0, 0, NOATIME | 1 << 32), Kind.OPENAT),
    (X86_64, 304, (0, 0, NOATIME), Kind.OPEN_BY_HANDLE_AT),
    (X86_64, 437, (), Kind.OPENAT2),
    (X86_64, 72, (0, F_SETFL, NOATIME), Kind.SETFL),
    (X86_64, 72, (0, F_SETFL | 1 << 32, NOATIME), Kind.SETFL),
    (X86_64, 122, (), Kind.STANDING),
    (X86_64, 161, (), Kind.STANDING),
    (X86_64, 425, (), Kind.IO_URING),
    (X86_64, 56, (UNTRACED | 17,), Kind.CLONE),
    (X86_64, 435, (), Kind.CLONE3),
    (I386, 120, (UNTRACED,), Kind.CLONE),
    (X86_64, 317, (1, 9), Kind.LISTENER),
    (I386, 5, (0, NOATIME), Kind.OPEN),
    (I386, 295, (0, 0, NOATIME), Kind.OPENAT),
    (I386, 342, (0, 0, NOATIME), Kind.OPEN_BY_HANDLE_AT),
    (I386, 437, (), Kind.OPENAT2),
    (I386, 55, (0, F_SETFL, NOATIME), Kind.SETFL),
    (I386, 221, (0, F_SETFL, NOATIME), Kind.SETFL),
    (X86_64, 0x40000000 + 2, (0, NOATIME), Kind.OPEN),
    (X86_64, 0x40000000 + 257, (0, 0, NOATIME), Kind.OPENAT),
]


@pytest.mark.parametrize(("arch", "number", "arguments", "kind"), TRACED)
def test_traced(
    program: bytes, arch: int, number: int, arguments: tuple[int, ...], kind: Kind
) -> None:
    result = answer(program, arch, number, *arguments)
    assert result & 0xFFFF0000 == TRACE
    assert kind_of(result & 0xFFFF) is kind


ALLOWED = [
    (X86_64, 0, ()),
    (X86_64, 2, (0, 0)),
    (X86_64, 2, (NOATIME, 0, NOATIME)),
    (X86_64, 257, (0, 0, DIRECT)),
    (X86_64, 257, (0, 0, NOATIME | O_PATH)),
    (X86_64, 72, (0, F_GETFL, NOATIME)),
    (X86_64, 72, (0, F_SETFL, 0)),
    (I386, 257, (0, 0, NOATIME)),
    (I386, 2, (0, NOATIME)),
    (X86_64, 0x40000000 + 0, ()),
    (AARCH64, 56, (0, 0, NOATIME)),
    (X86_64, 59, ()),
    (X86_64, 56, (17,)),
    (X86_64, 317, (1, 1)),
    (X86_64, 317, (3, 8)),
]


@pytest.mark.parametrize(("arch", "number", "arguments"), ALLOWED)
def test_allowed(program: bytes, arch: int, number: int, arguments: tuple[int, ...]) -> None:
    assert answer(program, arch, number, *arguments) == ALLOW


def test_what_no_program_can_do_without_stays_where_the_tracer_may_not() -> None:
    program = build_filter([NOATIME], O_PATH, leaves=True)
    for arch, number, arguments, kind in TRACED:
        expected = kind in (Kind.STANDING, Kind.CLONE, Kind.CLONE3, Kind.LISTENER)
        assert (answer(program, arch, number, *arguments) == ALLOW) is expected


def test_several_flags() -> None:
    program = build_filter([NOATIME, DIRECT], O_PATH)
    for flags in (NOATIME, DIRECT, NOATIME | DIRECT):
        assert answer(program, X86_64, 257, 0, 0, flags) != ALLOW
    assert answer(program, X86_64, 257, 0, 0, 0) == ALLOW


def test_other_filters_stops_are_not_ours() -> None:
    assert kind_of(7) is None
    assert kind_of(0) is None
    assert kind_of(COOKIE | Kind.OPENAT2) is Kind.OPENAT2


OPENS = {
    Kind.OPEN, Kind.OPENAT, Kind.OPENAT2, Kind.OPEN_BY_HANDLE_AT, Kind.SETFL, Kind.IO_URING,
    Kind.LISTENER,
}  # fmt: skip
LISTENED = [row for row in TRACED if row[3] in OPENS] + [
    (X86_64, 446, (), Kind.LANDLOCK),
    (I386, 446, (), Kind.LANDLOCK),
    (X86_64, 116, (), Kind.GROUPS),
    (I386, 206, (), Kind.GROUPS),
]


@pytest.mark.parametrize(("arch", "number", "arguments", "kind"), LISTENED)
def test_listener_is_asked(arch: int, number: int, arguments: tuple[int, ...], kind: Kind) -> None:
    """About the same opens as a tracer; what a call is, it knows by its number."""
    program = build_listener_filter([NOATIME], O_PATH)
    assert answer(program, arch, number, *arguments) == USER_NOTIF
    assert listened_calls()[arch, number & ~0x40000000] is kind


@pytest.mark.parametrize(
    ("number", "arguments"),
    [(2, (0, 0)), (257, (0, 0, NOATIME | O_PATH)), (72, (0, F_GETFL, NOATIME)), (435, ()),
     (105, ()), (317, (1, 1)), (56, (UNTRACED,))],
)  # fmt: skip
def test_listener_is_not_asked(number: int, arguments: tuple[int, ...]) -> None:
    program = build_listener_filter([NOATIME], O_PATH)
    assert answer(program, X86_64, number, *arguments) == ALLOW
