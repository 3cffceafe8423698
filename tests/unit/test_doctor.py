"""What doctor prints and how it exits; and that nothing a probe does gets out of its child."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from flagshim.cli import cli
from flagshim.linux.process import is_child_subreaper, set_child_subreaper
from flagshim.probes import PROBES, Finding, Probe, Status, examine, missing
from flagshim.probes.finding import Answer, works
from flagshim.probes.host import qemu_meaning
from flagshim.probes.noatime import _is_refused
from flagshim.probes.tracing import yama_meaning
from flagshim.probes.trial import TrialError, attempt
from flagshim.reports.doctor import document, paragraph, verdict
from tests.support import REPOSITORY, flagshim_command

FINE = Finding("ptrace", Status.WORKS, "a child can be traced")
LESS = Finding("io_uring", Status.LIMITED, "opens are not seen", "close it")
NOT_NEEDED = Finding("exit-kill", Status.NO, "no child can be traced", "see ptrace")
NEEDED = Finding("seccomp", Status.NO, "no filter can be installed", "use another kernel")


def _doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str, found: list
) -> tuple[int, str]:
    monkeypatch.setattr("flagshim.cli.doctor.examine", lambda: iter(found))
    status = cli(["doctor", *args], standalone_mode=False)
    return status, capsys.readouterr().out


# --- what is printed ------------------------------------------------------------------


def test_a_finding_is_wrapped_beside_its_status_and_name() -> None:
    finding = Finding("end-to-end", Status.LIMITED, " ".join(["detail"] * 12), "help " * 13)
    assert paragraph(finding).splitlines() == [
        "limited  end-to-end    detail detail detail detail detail detail detail detail",
        "                       detail detail detail detail",
        "                       help: help help help help help help help help help help",
        "                             help help help\\x20",
    ]


def test_no_line_is_wider_than_80_columns_whatever_is_in_it() -> None:
    finding = Finding("versions", Status.NO, "x" * 500, f"{'word ' * 40}{'y' * 200}")
    assert max(map(len, paragraph(finding).splitlines())) == 80


def test_a_finding_without_help_has_no_line_for_it() -> None:
    assert paragraph(FINE).splitlines() == ["works    ptrace        a child can be traced"]


def test_names_reach_no_terminal_as_they_are() -> None:
    finding = Finding("ptrace", Status.NO, "traced by \x1b[31mevil\n", "do\x1bnot")
    assert "\x1b" not in paragraph(finding)
    assert "evil\\n" in paragraph(finding)
    assert "do\\x1bnot" in paragraph(finding)


def test_the_json_document_has_the_four_members_in_order() -> None:
    assert json.loads(document([FINE, NEEDED])) == [
        {"probe": "ptrace", "status": "works", "detail": "a child can be traced", "help": ""},
        {
            "probe": "seccomp",
            "status": "no",
            "detail": "no filter can be installed",
            "help": "use another kernel",
        },
    ]
    assert document([Finding("x", Status.NO, "\x1bä\udc80")]).isascii()


def test_the_last_line_names_only_what_run_cannot_do_without() -> None:
    assert verdict([FINE, LESS, NOT_NEEDED]) == "flagshim run can work here."
    assert verdict([NOT_NEEDED, NEEDED, FINE]) == "flagshim run cannot work here: seccomp."


# --- the command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([FINE, LESS], 0),
        ([FINE, NOT_NEEDED], 0),
        ([FINE, NEEDED, LESS], 125),
        ([Finding("seccomp", Status.LIMITED, "with no_new_privs", "run as root")], 0),
    ],
)
def test_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: list[Finding],
    expected: int,
) -> None:
    status, out = _doctor(monkeypatch, capsys, found=found)
    assert status == expected
    assert out.splitlines()[-1].startswith(
        "flagshim run cannot work here: " if expected else "flagshim run can work here."
    )
    status, out = _doctor(monkeypatch, capsys, "--format", "json", found=found)
    assert status == expected
    assert [entry["probe"] for entry in json.loads(out)] == [finding.probe for finding in found]


def test_each_finding_is_printed_before_the_next_probe_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []

    def findings() -> Iterator[Finding]:
        yield FINE
        printed.append(capsys.readouterr().out)
        yield LESS

    monkeypatch.setattr("flagshim.cli.doctor.examine", findings)
    cli(["doctor"], standalone_mode=False)
    assert printed == ["works    ptrace        a child can be traced\n"]


def test_output_that_cannot_be_written_is_one_line_and_125() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*flagshim_command(), "doctor"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, check=False,
        )  # fmt: skip
    assert result.returncode == 125
    assert (
        result.stderr == "flagshim: standard output: No space left on device; write it elsewhere\n"
    )


def test_an_output_encoding_without_the_character_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(
        "flagshim.cli.doctor.examine", lambda: iter([Finding("qemu", Status.WORKS, "/ä/qemu")])
    )
    file = tmp_path_factory.mktemp("out") / "out"
    with open(file, "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli(["doctor"], standalone_mode=False) == 0
    assert "/\\xe4/qemu" in file.read_text()


# --- the set of probes ----------------------------------------------------------------


def test_names_are_unique_and_what_is_needed_is_named() -> None:
    names = [probe.name for probe in PROBES]
    assert len(set(names)) == len(names)
    assert {probe.name for probe in PROBES if probe.needed} == {
        "architecture", "proc", "ptrace", "syscall-info", "seccomp", "libseccomp", "end-to-end",
    }  # fmt: skip


def test_any_other_set_can_be_examined() -> None:
    extra = Probe("bpf", lambda: works("a program loads"), needed=False)
    assert list(examine([extra])) == [Finding("bpf", Status.WORKS, "a program loads")]


# --- a probe that goes wrong ----------------------------------------------------------


def _crash() -> Answer:
    raise RuntimeError("of all things")


@pytest.mark.parametrize(("needed", "status"), [(True, Status.NO), (False, Status.LIMITED)])
def test_a_crash_is_a_finding(needed: bool, status: Status) -> None:
    finding = Probe("x", _crash, needed)()
    assert finding.status is status
    assert "RuntimeError: of all things" in finding.detail
    assert finding.help


def test_a_hang_is_a_finding() -> None:
    finding = Probe("x", lambda: works(str(time.sleep(600))), needed=False, seconds=0.3)()
    assert finding.status is Status.LIMITED
    assert "no answer within 0.3 seconds" in finding.detail


@pytest.mark.parametrize(
    ("number", "text"),
    [(signal.SIGSEGV, "killed by SIGSEGV"), (signal.SIGSYS, "a seccomp filter kills")],
)
def test_a_fatal_signal_is_a_finding(number: signal.Signals, text: str) -> None:
    def look() -> Answer:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return works("not reached")

    finding = Probe("x", look, needed=True)()
    assert finding.status is Status.NO
    assert text in finding.detail


def test_an_exit_without_an_answer_is_a_finding() -> None:
    assert "without a word" in Probe("x", lambda: os._exit(0), needed=True)().detail


def test_no_child_to_be_had_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    finding = Probe("x", lambda: works(""), needed=False)()
    assert "no child can be started: Resource temporarily unavailable" in finding.detail


def test_what_a_probe_prints_is_not_seen(capfd: pytest.CaptureFixture[str]) -> None:
    def look() -> list[str]:
        os.write(1, b"out")
        os.write(2, b"err")
        return [repr(os.read(0, 1))]

    assert attempt(look) == ["b''"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("hang", [False, True])
def test_nothing_that_a_trial_started_is_left(hang: bool) -> None:
    read, write = os.pipe()

    def look() -> list[str]:
        if (pid := os.fork()) == 0:
            time.sleep(600)
        os.write(write, str(pid).encode())
        if hang:
            time.sleep(600)
        return []

    os.set_blocking(read, False)
    told = b""
    for seconds in (0.5, 2, 8, 32) if hang else (60,):  # until it gets as far as that
        try:
            attempt(look, seconds)
            assert not hang
        except TrialError:
            assert hang
        with contextlib.suppress(BlockingIOError):
            told = os.read(read, 32)
            break
    grandchild = int(told)
    with pytest.raises(ProcessLookupError):  # nor a zombie
        os.kill(grandchild, 0)
    os.close(read)
    os.close(write)


def test_a_caller_that_ignores_its_children_gets_answers_and_goes_on_ignoring() -> None:
    handler = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert attempt(lambda: ["answer"]) == ["answer"]
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, handler)


@pytest.mark.parametrize("subreaper", [False, True])
def test_orphans_go_where_they_went_before(subreaper: bool) -> None:
    former = is_child_subreaper()
    set_child_subreaper(subreaper)
    attempt(list)
    assert is_child_subreaper() == subreaper
    set_child_subreaper(former)


# --- what is only read, not tried -----------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "capable", "status"),
    [
        (None, False, Status.WORKS),
        (0, False, Status.WORKS),
        (1, False, Status.WORKS),
        (2, True, Status.WORKS),
        (2, False, Status.NO),
        (3, True, Status.NO),
    ],
)
def test_yama(scope: int | None, capable: bool, status: Status) -> None:
    answer = yama_meaning(scope, capable)
    assert answer.status is status
    assert bool(answer.help) == (status is Status.NO)
    assert scope is None or f"ptrace_scope is {scope}" in answer.detail


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\n", "q 7.2.22: it opens again"),
        ("QEMU emulator version 5.0.1\n", "q 5.0.1: it opens again"),
        ("QEMU emulator version 5.1.0-rc1\n", "q 5.1.0: it opens again"),
        ("QEMU emulator version 5.0.0\n", "q 5.0.0: it fails"),
        ("QEMU emulator version 4.2.1 (Debian)\n", "q 4.2.1: it fails"),
        ("QEMU emulator version 10.0\n", "q 10.0: it opens again"),
        ("something else\n", "q does not tell"),
        ("", "q does not tell"),
    ],
)
def test_qemu(output: str, text: str) -> None:
    assert qemu_meaning("q", output).detail.startswith(text)


def test_a_file_that_cannot_be_read_at_all_shows_nothing() -> None:
    assert not _is_refused("/no/such/file")


def test_missing_is_in_the_order_of_the_findings() -> None:
    other = Finding("ptrace", Status.NO, "", "")
    assert missing([NEEDED, FINE, other, NOT_NEEDED]) == [NEEDED, other]
