"""One boot of a guest: the QEMU command, and what its console said."""

import grp
import os
import pwd
import re
import select
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from .cache import root
from .image import Image

DEBIAN_QEMU = ("qemu-system-x86_64",)

TIMEOUT = 240.0
"""Seconds; a boot takes 5 to 10 on an idle machine, all of it emulated."""


class Outcome(StrEnum):
    """How a boot ended."""

    REPORTED = "reported"
    """The guest came to its end and said how its steps went, well or not."""
    DIED = "died"
    """QEMU ended, or the guest's kernel panicked, before that."""
    HUNG = "hung"
    """Nothing of it within the time limit; QEMU was ended from here."""


@dataclass(frozen=True)
class StepResult:
    ok: bool
    detail: str


@dataclass(frozen=True)
class Guest:
    """What to boot, and how.

    Attributes:
        share: the folder that becomes the overlay's lower layer.
        qemu: program and its first arguments.
        prefix: a command that runs QEMU (strace, flagshim run), as the caller's user.
        user: QEMU runs as this user; None: `prefix` sees to that, or the caller's user will do.
        mode: "check" takes all steps, "bench" only reads and measures; see `init`.
        files: read no more than this many files.
        second: a folder that is laid over the share, from a 9p share of its own.
        words: more for the kernel's command line; see `init`.
        serial: where the guest's console goes, as -serial takes it.
        extra: more arguments for QEMU.
        fsdev: more options for the share.
        memory: as QEMU's -m takes it.
        timeout: seconds until the guest counts as hung.
    """

    image: Image
    share: Path
    qemu: tuple[str, ...] = DEBIAN_QEMU
    prefix: tuple[str, ...] = ()
    user: str | None = "nobody"
    mode: str = "check"
    files: int | None = None
    second: Path | None = None
    words: tuple[str, ...] = ()
    serial: str = "stdio"
    extra: tuple[str, ...] = ()
    fsdev: tuple[str, ...] = ()
    memory: str = "256M"
    timeout: float = TIMEOUT


@dataclass(frozen=True)
class GuestResult:
    """What came of a boot.

    Attributes:
        exit_status: of the command, QEMU or its prefix; negative: minus the fatal signal.
        console: the guest's serial console, as text.
        stderr: of QEMU and its prefix.
        seconds: from start to end, as the host saw it.
        guest_seconds: what the guest measured in bench mode.
    """

    outcome: Outcome
    steps: dict[str, StepResult]
    exit_status: int
    console: str
    stderr: str
    seconds: float
    guest_seconds: float | None = field(default=None)

    @property
    def failed(self) -> dict[str, StepResult]:
        return {name: step for name, step in self.steps.items() if not step.ok}

    @property
    def account(self) -> str:
        """All there is to know, for a person who asks why."""
        lines = [f"{self.outcome}, exit status {self.exit_status}, {self.seconds:.1f} s"]
        lines += [f"{name}: {step.detail}" for name, step in self.failed.items()]
        return "\n".join([*lines, "--- console", self.console, "--- stderr", self.stderr])


def unpatched_qemu() -> tuple[str, ...]:
    """What `make qemu-unpatched` builds into the cache; it brings no firmware of its own."""
    program = str(root() / "qemu-unpatched/qemu-system-x86_64")
    return (program, "-L", "/usr/share/qemu", "-L", "/usr/share/seabios")


def user_prefix(user: str) -> tuple[str, ...]:
    """A command that becomes another as a user: the same process, with its PID."""
    group = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    return ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--")


def qemu_command(guest: Guest) -> list[str]:
    """The whole command, prefix and all, ready to run or (shlex.join) to paste."""
    words = ["console=ttyS0", "quiet", "panic=-1", f"flagshim.mode={guest.mode}", *guest.words]
    if guest.files is not None:
        words.append(f"flagshim.files={guest.files}")
    shares = {"store": guest.share}
    if guest.second is not None:
        words.append("flagshim.second=1")
        shares["second"] = guest.second
    return [
        *guest.prefix,
        *(user_prefix(guest.user) if guest.user else ()),
        *guest.qemu,
        # KVM is left alone: where it is nested it may hang instead of being absent.
        "-accel", "tcg",
        "-m", guest.memory,
        "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none",
        "-serial", guest.serial,
        "-kernel", str(guest.image.kernel),
        "-initrd", str(guest.image.initrd),
        "-append", " ".join(words),
        *(
            word
            for tag, folder in shares.items()
            for word in _share_options(tag, folder, guest.fsdev)
        ),
        *guest.extra,
    ]  # fmt: skip


def _share_options(tag: str, folder: Path, more: tuple[str, ...]) -> tuple[str, ...]:
    return (
        "-fsdev", ",".join((f"local,id={tag},path={_escaped(folder)},security_model=none", *more)),
        "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
    )  # fmt: skip


def boot(guest: Guest) -> GuestResult:
    """Run a guest to its end, whatever that is, and leave no process behind."""
    # Files rather than pipes: nothing to drain while waiting, and what a hung guest said stays.
    with tempfile.TemporaryFile() as console, tempfile.TemporaryFile() as stderr:
        started = time.monotonic()
        process = subprocess.Popen(
            qemu_command(guest),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            in_time = _ends(process, guest.timeout)
        finally:
            _clear_away(process)
        seconds = time.monotonic() - started
        return _result(
            in_time, process.returncode, _text(console.fileno()), _text(stderr.fileno()), seconds
        )


def _ends(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process comes to its end in time; it stays a zombie, and its PID taken."""
    descriptor = os.pidfd_open(process.pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    return bool(ended)


def _clear_away(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process group, politely first, and reap its leader."""
    # Until the leader is reaped nothing else can have got the number of the group.
    os.killpg(process.pid, signal.SIGTERM)
    _ends(process, 5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def report_on(console: str) -> tuple[bool, dict[str, StepResult]]:
    """Whether the guest came to the end of its steps, and how each went."""
    steps = {
        name: StepResult(state == "ok", detail.strip())
        for name, state, detail in re.findall(
            r"^FLAGSHIM-STEP (\S+) (ok|fail) ?(.*)$", console, flags=re.MULTILINE
        )
    }
    done = re.search(r"^FLAGSHIM-DONE (\d+)$", console, flags=re.MULTILINE)
    if done and int(done[1]) != len(steps):
        # A kernel message in the middle of a line: never let a lost step pass for a good one.
        steps["console"] = StepResult(False, f"{len(steps)} of {done[1]} steps came through")
    return bool(done), steps


def _result(
    in_time: bool, exit_status: int, console: str, stderr: str, seconds: float
) -> GuestResult:
    reported, steps = report_on(console)
    took = re.search(r"^FLAGSHIM-TIME (\d+\.\d+)$", console, flags=re.MULTILINE)
    ended = Outcome.REPORTED if reported else Outcome.DIED
    return GuestResult(
        outcome=ended if in_time else Outcome.HUNG,
        steps=steps,
        exit_status=exit_status,
        console=console,
        stderr=stderr,
        seconds=seconds,
        guest_seconds=float(took[1]) if took else None,
    )


def _text(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read().decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _escaped(path: Path) -> str:
    """As an option's value for QEMU, where a comma ends it unless doubled."""
    return str(path).replace(",", ",,")
