"""The bpf engine's parts that need no kernel."""

import os
import platform
import re
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from flagshim.engines.bpf import headers, records
from flagshim.engines.bpf.libc import blind_spots, entries_of, libc_of_command, libc_of_process
from flagshim.engines.bpf.program import skipped_in
from flagshim.engines.bpf.pump import Pump
from flagshim.engines.bpf.rewriter import _masks, why_not
from flagshim.engines.bpf.translation import Translator
from flagshim.errors import FlagshimError
from flagshim.openflags import bits_of
from flagshim.rules import MACHINE, Rule, When
from flagshim.syscalls import Kind
from flagshim.trace.store import begin_session
from flagshim.trace.writer import TraceWriter
from tests.support import REPOSITORY, rows
from tests.unit.test_writer import SESSION, wait_for

NOATIME, DIRECT = (bits_of(name, MACHINE) for name in ("O_NOATIME", "O_DIRECT"))

OFFSETS = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef uint64_t u64; typedef int64_t s64; typedef uint32_t u32; typedef int32_t s32;
#include "event.h"
#define F(name) printf(#name " %zu\n", offsetof(struct open_event, name))
int main(void) {
    F(time_ns); F(flags); F(cleared); F(result); F(pid); F(tid); F(uid); F(dirfd); F(call);
    F(entered); F(path_size); F(follows); F(comm); F(path);
    printf("COMM_SIZE %d\nPREFIX_SIZE %d\nERRNOS %d\nMISSES %d\nENTERED_NO %d\nENTERED_YES %d\n",
           COMM_SIZE, PREFIX_SIZE, ERRNOS, MISSES, ENTERED_NO, ENTERED_YES);
    printf("CALLS %d\n", CALLS);
    printf("%d %d %d %d %d\n", CALL_OPEN, CALL_OPENAT, CALL_OPENAT2, CALL_OPEN_BY_HANDLE_AT,
           CALL_SETFL);
}
"""


def test_both_sides_agree_on_the_header(tmp_path: Path) -> None:
    source = tmp_path / "offsets.c"
    source.write_text(OFFSETS)
    program = tmp_path / "offsets"
    subprocess.run(["gcc", f"-I{REPOSITORY}/bpf", "-o", program, source], check=True)
    *lines, kinds = subprocess.check_output([program], text=True).splitlines()
    told = {name: int(value) for name, value in map(str.split, lines)}
    codes = re.findall(r"\d*[A-Za-z]", records._OPEN_EVENT.format.removeprefix("="))
    offset = 0
    flat = [code for code in codes if code != "16s"] + ["16s"]
    for name, code in zip(told, flat, strict=False):
        assert told[name] == offset, name
        offset += struct.calcsize("=" + code)
    assert told["path"] == offset == records.OPEN_EVENT_SIZE
    assert told["COMM_SIZE"] == records.COMM_SIZE
    assert told["PREFIX_SIZE"] == records.PREFIX_SIZE
    assert told["ERRNOS"] == records.ERRNOS
    assert told["MISSES"] == len(records.MISSES)
    assert told["CALLS"] == Kind.SETFL + 1
    assert (told["ENTERED_NO"], told["ENTERED_YES"]) == (records.ENTERED_NO, records.ENTERED_YES)
    assert [int(kind) for kind in kinds.split()] == [
        Kind.OPEN, Kind.OPENAT, Kind.OPENAT2, Kind.OPEN_BY_HANDLE_AT, Kind.SETFL,
    ]  # fmt: skip


def test_a_record_is_decoded() -> None:
    head = struct.pack("=QQQqIIIiIIII16s", 1, 2, 3, -1, 4, 5, 6, -100, 2, 1, 6, 0, b"dd\0rest")
    raw = records.unpack_open(head + b"/file\0")
    assert raw == (1, 2, 3, -1, 4, 5, 6, -100, 2, 1, False, b"dd", b"/file")
    nameless = struct.pack("=QQQqIIIiIIII16s", 1, 2, 3, -1, 4, 5, 6, -100, 2, 1, 0, 0, b"dd")
    assert records.unpack_open(nameless).path is None


# --- the pump -----------------------------------------------------------------------------


class Silent:
    """An observer with nothing to tell, but of what it could not tell."""

    def take(self) -> list[records.RawOpen]:
        return []

    def new_misses(self) -> Counter[str]:
        return Counter({"ring full": 13, "return": 17, "call": 19, "fork": 23})


def test_a_loss_is_in_the_trace_before_any_further_open(tmp_path: Path) -> None:
    trace = tmp_path / "t.db"
    writer = TraceWriter(begin_session(trace, SESSION), print)
    pump = Pump(Silent(), Translator(), writer)
    pump.count_misses()
    wait_for(trace, "SELECT lost FROM session", 30, pump.move)
    assert rows(trace, "SELECT seen, lost FROM session") == [(30, 30)]
    writer.close(None)


def test_what_the_kernel_left_out_of_any_process_is_a_blind_spot(tmp_path: Path) -> None:
    trace = tmp_path / "t.db"
    writer = TraceWriter(begin_session(trace, SESSION), print)
    pump = Pump(Silent(), Translator(), writer)
    pump.count_misses()
    writer.close(None)
    found = rows(trace, "SELECT kind, count FROM blind_spot ORDER BY count")
    assert [(kind.split(" ")[0], count) for kind, count in found] == [("call", 19), ("fork", 23)]
    assert pump.lost == 30


def test_how_often_a_program_was_left_out() -> None:
    told = "prog_type:\t5\nrun_cnt:\t7\nrecursion_misses:\t13\nverified_insns:\t11\n"
    assert skipped_in(told) == 13
    assert skipped_in("prog_type:\t5\n") == 0  # before Linux 5.12


# --- headers ------------------------------------------------------------------------------


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    headers.point_bcc_at_headers.cache_clear()


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


@pytest.mark.usefixtures("no_variable")
def test_headers_of_the_running_kernel_are_left_to_bcc(tmp_path: Path) -> None:
    touch(tmp_path / "modules" / platform.release() / "build/include/linux/types.h")
    assert headers.point_bcc_at_headers(tmp_path / "modules", tmp_path / "src") == ()
    assert not os.environ["BCC_KERNEL_SOURCE"]


@pytest.mark.usefixtures("no_variable")
def test_the_newest_of_debians_headers_serves(tmp_path: Path) -> None:
    for release in ("6.1.0-9", "6.1.0-56"):
        touch(tmp_path / f"src/linux-headers-{release}-common/include/linux/types.h")
        touch(tmp_path / f"src/linux-headers-{release}-amd64/include/generated/autoconf.h")
    flags = headers.point_bcc_at_headers(tmp_path / "modules", tmp_path / "src")
    assert os.environ["BCC_KERNEL_SOURCE"] == f"{tmp_path}/src/linux-headers-6.1.0-56-common"
    assert f"-I{tmp_path}/src/linux-headers-6.1.0-56-amd64/include" in flags


@pytest.mark.usefixtures("no_variable")
def test_no_headers_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(FlagshimError, match="apt-get install linux-headers") as caught:
        headers.point_bcc_at_headers(tmp_path / "modules", tmp_path / "src")
    assert "\n" not in str(caught.value)


# --- rules --------------------------------------------------------------------------------


def test_rules_that_the_bpf_engine_can_follow() -> None:
    always = Rule(when=When.ALWAYS)
    assert why_not([always]) is None
    assert why_not([Rule(when=When.ALWAYS, paths=("/nix/store/**", "/**"))]) is None
    for rule, told in (
        (Rule(), "cannot wait for the kernel's refusal"),
        (Rule(when=When.ALWAYS, clear=("O_SYNC",)), "O_NOATIME and O_DIRECT only"),
        (Rule(when=When.ALWAYS, programs=("qemu-*",)), "leave programs out"),
        (Rule(when=When.ALWAYS, paths=("/nix/*/x",)), "beginnings only"),
        (Rule(when=When.ALWAYS, paths=("/nix/store**",)), "beginnings only"),
        (Rule(when=When.ALWAYS, paths=(f"/{'x' * 256}/**",)), "longer than 255"),
    ):
        reason = why_not([always, rule])
        assert reason is not None
        assert told in str(reason)


def test_the_longest_prefix_knows_what_shorter_ones_say() -> None:
    rules = [
        Rule(when=When.ALWAYS, paths=("/a/**",)),
        Rule(when=When.ALWAYS, clear=("O_DIRECT",), paths=("/a/b/**", "/c/**")),
    ]
    assert _masks(rules) == (
        0,
        {b"/a/": NOATIME, b"/a/b/": NOATIME | DIRECT, b"/c/": DIRECT},
    )
    assert _masks([Rule(when=When.ALWAYS)]) == (NOATIME, {})


# --- libc ---------------------------------------------------------------------------------


def test_our_own_libc_is_found_with_its_entries() -> None:
    mapped = libc_of_process(os.getpid())
    assert os.path.basename(mapped.name).startswith("libc")
    if os.geteuid() == 0:  # /proc/PID/map_files is root's
        assert set(entries_of(mapped).values()) == {"libc_open", "libc_openat", "libc_fcntl"}


def test_a_commands_libc_is_what_its_loader_says() -> None:
    libc = libc_of_command(sys.executable, [b"PATH=/bin"])
    assert set(entries_of(libc).values()) == {"libc_open", "libc_openat", "libc_fcntl"}
    with pytest.raises(FlagshimError, match="a static program"):
        libc_of_command("/bin/busybox", [])


def test_a_scripts_libc_is_its_interpreters(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\ntrue\n")
    assert libc_of_command(str(script), []) == libc_of_command("/bin/sh", [])
    script.write_text("neither\n")
    with pytest.raises(FlagshimError, match="leave --engine bpf out"):
        libc_of_command(str(script), [])


def test_a_program_that_calls_the_kernel_itself_is_found_out(tmp_path: Path) -> None:
    for name, body in (("calls", "return syscall(39) < 0;"), ("opens", "return 0;")):
        source = tmp_path / f"{name}.c"
        source.write_text(f"#include <unistd.h>\nlong syscall(long, ...);\nint main() {{ {body} }}")
        subprocess.run(["gcc", "-o", tmp_path / name, source], check=True)
    assert blind_spots(str(tmp_path / "calls")) == ["it uses syscall(2)"]
    assert blind_spots(str(tmp_path / "opens")) == []


# --- the wheel ------------------------------------------------------------------------------


def test_the_sources_are_in_the_wheel(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    names = ["pyproject.toml", "README.md", "LICENSE", "flagshim", "bpf", "docs", "completion"]
    subprocess.run(
        ["cp", "-a", *(REPOSITORY / name for name in names), "-t", _made(tree)], check=True
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q",
         "-w", tmp_path, tree],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    packed = zipfile.ZipFile(wheel)
    modules = (file.relative_to(REPOSITORY) for file in REPOSITORY.glob("flagshim/**/*.py"))
    assert {str(module) for module in modules} <= set(packed.namelist())
    for source in (*REPOSITORY.glob("bpf/*.c"), *REPOSITORY.glob("bpf/*.h")):
        assert packed.read(f"flagshim/bpf/{source.name}") == source.read_bytes()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
