"""doctor, in surroundings that allow one thing and refuse another."""

import errno
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyseccomp
import pytest

from flagshim import __version__
from flagshim.linux.libc import raw_syscall
from flagshim.linux.process import is_child_subreaper, set_child_subreaper
from flagshim.probes import (
    PROBES,
    reason_end_to_end_unavailable,
    reason_i386_unavailable,
    reason_ptrace_unavailable,
    reason_seccomp_unavailable,
)
from tests.kernel.conftest import NOBODY, SECONDS, Place
from tests.support import REPOSITORY, flagshim_command, require

Findings = dict[str, dict[str, str]]


def _doctor(*before: str, **kwargs: object) -> tuple[int, Findings]:
    kwargs.setdefault("cwd", REPOSITORY)
    result = subprocess.run(
        [*before, *flagshim_command(), "doctor", "--format", "json"],
        capture_output=True, text=True, timeout=SECONDS, check=False, **kwargs,
    )  # fmt: skip
    assert result.stderr == ""
    return result.returncode, {entry["probe"]: entry for entry in json.loads(result.stdout)}


def _refusing(action: int, *calls: str) -> Callable[[], None]:
    """Return what makes a child of subprocess one whose seccomp filter answers `calls`."""

    def install() -> None:
        program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        for call in calls:
            program.add_rule(action, call)
        program.load()

    return install


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Whatever a doctor leaves running, or unreaped, becomes our child."""
    before = is_child_subreaper()
    set_child_subreaper(True)
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    set_child_subreaper(before)


@pytest.fixture
def readable() -> Iterator[Path]:
    """A copy of the package that everybody may read, as the tree under test may not be."""
    require("nobody", None if os.geteuid() == 0 else "needs root to become another user")
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    folder.chmod(0o755)
    shutil.copytree(
        REPOSITORY / "flagshim", folder / "flagshim", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    tried = subprocess.run(
        [sys.executable, "-c", "import click, ptrace, pyseccomp, tabulate"],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd=folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    require("nobody", tried.stderr[-200:] or None)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def can_run() -> None:
    """The machine as it is lets flagshim work; what a test takes away is then what is missed."""
    require("ptrace", reason_ptrace_unavailable())
    require("seccomp", reason_seccomp_unavailable())
    require("refusal", reason_end_to_end_unavailable())


@pytest.mark.usefixtures("can_run")
def test_everything_is_answered_and_run_works() -> None:
    status, found = _doctor()
    assert list(found) == [probe.name for probe in PROBES]
    assert all("could not be found out" not in entry["detail"] for entry in found.values()), found
    assert status == 0
    for probe in PROBES:
        if probe.needed and probe.name != "seccomp":
            assert found[probe.name]["status"] == "works", found[probe.name]
    assert found["exit-kill"]["status"] == "works"
    assert re.search(r"user \d+ is refused O_NOATIME on /", found["end-to-end"]["detail"])


def test_ptrace_agrees_with_strace() -> None:
    require("strace", None if shutil.which("strace") else "not installed")
    strace = subprocess.run(
        ["strace", "-o", "/dev/null", "true"], capture_output=True, check=False, timeout=SECONDS
    )
    _, found = _doctor()
    assert (found["ptrace"]["status"] == "works") == (strace.returncode == 0)


def test_end_to_end_agrees_with_run(place: Place, tmp_path: Path) -> None:
    dd = ["dd", f"if={place.file}", "of=/dev/null", "iflag=noatime"]
    alone = subprocess.run(dd, user=NOBODY, capture_output=True, check=False)
    require("dd", None if b"not permitted" in alone.stderr else "dd here knows no iflag=noatime")
    run = [*flagshim_command(), "run", "-o", tmp_path / "trace.db", "-u", "nobody", "--"]
    supervised = subprocess.run(
        [*run, *dd], capture_output=True, check=False, cwd=REPOSITORY, timeout=SECONDS
    )
    status, found = _doctor()
    assert (found["end-to-end"]["status"] == "works") == (supervised.returncode == 0)
    assert (status == 0) == (supervised.returncode == 0)


@pytest.mark.usefixtures("can_run")
def test_root_keeps_set_user_id_programs() -> None:
    require("nobody", None if os.geteuid() == 0 else "not root")
    _, found = _doctor()
    assert found["seccomp"]["status"] == "works"
    assert "set-user-ID programs keep their privileges" in found["seccomp"]["detail"]
    assert f"user {NOBODY} is refused" in found["end-to-end"]["detail"]


@pytest.mark.usefixtures("can_run")
def test_an_ordinary_user_can_run_with_no_new_privs(readable: Path) -> None:
    status, found = _doctor(user=NOBODY, group=NOBODY, extra_groups=[], cwd=readable)
    assert status == 0
    assert found["seccomp"]["status"] == "limited"
    assert "no_new_privs" in found["seccomp"]["detail"]
    assert found["end-to-end"]["status"] == "works"
    assert f"user {NOBODY} is refused" in found["end-to-end"]["detail"]


@pytest.mark.usefixtures("can_run")
def test_no_new_privs_that_is_set_already_is_said() -> None:
    require("setpriv", None if shutil.which("setpriv") else "not installed")
    status, found = _doctor("setpriv", "--no-new-privs")
    assert status == 0
    assert found["seccomp"]["status"] == "works"
    assert "no_new_privs is set already" in found["seccomp"]["detail"]


@pytest.mark.usefixtures("can_run")
def test_the_tracer_that_is_in_the_way_is_named() -> None:
    require("strace", None if shutil.which("strace") else "not installed")
    status, found = _doctor("strace", "-f", "-o", "/dev/null")
    assert status == 125
    assert found["ptrace"]["status"] == "no"
    assert re.search(r"\bstrace \(PID [1-9]\d*\)", found["ptrace"]["detail"])
    assert found["end-to-end"]["status"] == "no"
    assert "strace" in found["end-to-end"]["detail"]
    assert found["seccomp"]["status"] == "works" or os.geteuid()


@pytest.mark.usefixtures("can_run")
def test_under_flagshim_itself_it_is_named_too(tmp_path: Path) -> None:
    trace = tmp_path / "trace.db"
    result = subprocess.run(
        [*flagshim_command(), "run", "-o", trace, "--", *flagshim_command(), "doctor"],
        capture_output=True, text=True, timeout=SECONDS, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert result.returncode == 125
    assert re.search(r"no +ptrace +children are traced by \S+ \(PID [1-9]\d*\)", result.stdout)
    assert result.stdout.splitlines()[-1].startswith("flagshim run cannot work here: ptrace, ")


@pytest.mark.usefixtures("can_run")
@pytest.mark.parametrize(("number", "name"), [(errno.EPERM, "EPERM"), (errno.ENOSYS, "ENOSYS")])
def test_a_filter_that_refuses_ptrace_is_told_from_other_causes(number: int, name: str) -> None:
    status, found = _doctor(preexec_fn=_refusing(pyseccomp.ERRNO(number), "ptrace"))
    assert status == 125
    assert found["ptrace"]["status"] == "no"
    assert f"a seccomp filter answers all of ptrace with {name}" in found["ptrace"]["detail"]
    assert "SYS_PTRACE" in found["ptrace"]["help"]
    assert found["end-to-end"]["status"] == "no"
    assert found["exit-kill"]["status"] == "no"


@pytest.mark.usefixtures("can_run")
def test_a_filter_that_kills_is_a_finding() -> None:
    kill = pyseccomp.KILL_PROCESS
    status, found = _doctor(preexec_fn=_refusing(kill, "ptrace", "io_uring_setup", "openat2"))
    assert status == 125
    assert found["ptrace"]["status"] == "no"
    assert "a seccomp filter kills" in found["ptrace"]["detail"]
    assert found["io_uring"]["status"] == "works"
    assert found["openat2"]["status"] == "limited"


@pytest.mark.usefixtures("can_run")
def test_a_filter_that_lets_no_other_be_installed() -> None:
    def install() -> None:
        program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        pr_set_seccomp = pyseccomp.Arg(0, pyseccomp.EQ, 22)
        program.add_rule(pyseccomp.ERRNO(errno.EINVAL), "prctl", pr_set_seccomp)
        program.load()

    status, found = _doctor(preexec_fn=install)
    assert status == 125
    assert found["ptrace"]["status"] == "works"
    assert found["seccomp"]["status"] == "no"
    assert "Invalid argument" in found["seccomp"]["detail"]
    assert "cannot install a seccomp filter" in found["end-to-end"]["detail"]


@pytest.mark.usefixtures("can_run")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_without_openat2_refusals_cannot_be_foreseen_but_are_cured(number: int) -> None:
    status, found = _doctor(preexec_fn=_refusing(pyseccomp.ERRNO(number), "openat2"))
    assert status == 0
    assert found["openat2"]["status"] == "limited"
    assert "two more stops" in found["openat2"]["detail"]
    assert found["end-to-end"]["status"] == "works"


@pytest.mark.usefixtures("can_run")
def test_without_process_vm_readv_names_are_missing() -> None:
    refuse = _refusing(pyseccomp.ERRNO(errno.EPERM), "process_vm_readv", "process_vm_writev")
    status, found = _doctor(preexec_fn=refuse)
    assert status == 0
    assert found["end-to-end"]["status"] == "limited"
    assert "names of files cannot be read" in found["end-to-end"]["detail"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_io_uring_that_is_closed_lets_nothing_escape(number: int) -> None:
    _, found = _doctor(preexec_fn=_refusing(pyseccomp.ERRNO(number), "io_uring_setup"))
    assert found["io_uring"]["status"] == "works"


def test_io_uring_that_is_open_is_a_limit() -> None:
    io_uring_setup = 425
    try:
        os.close(raw_syscall(io_uring_setup, 1, bytes(120)))
    except OSError as error:
        require("io_uring", str(error))
    _, found = _doctor()
    assert found["io_uring"]["status"] == "limited"
    assert "io_uring_disabled=2" in found["io_uring"]["help"]


def test_one_cpu_is_a_limit() -> None:
    one = {min(os.sched_getaffinity(0))}
    status, found = _doctor(preexec_fn=lambda: os.sched_setaffinity(0, one))
    assert found["cpus"]["status"] == "limited"
    assert status == _doctor()[0]


def test_all_the_cpus_are_counted() -> None:
    count = len(os.sched_getaffinity(0))
    require("cpus", None if count > 1 else "only one CPU")
    _, found = _doctor()
    assert found["cpus"]["status"] == "works"
    assert found["cpus"]["detail"].startswith(f"{count} ")


def test_without_libseccomp_it_is_said_by_name(tmp_path: Path) -> None:
    (tmp_path / "pyseccomp.py").write_text('raise RuntimeError("Unable to find libseccomp")\n')
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    status, found = _doctor(env=environment)
    assert status == 125
    assert found["libseccomp"]["status"] == "no"
    assert "Unable to find libseccomp" in found["libseccomp"]["detail"]
    assert "the engine cannot be loaded" in found["end-to-end"]["detail"]


@pytest.mark.usefixtures("can_run")
def test_without_proc_it_is_said_and_nothing_crashes() -> None:
    require("unshare", None if shutil.which("unshare") else "not installed")
    tried = subprocess.run(
        ["unshare", "--mount", "umount", "-l", "/proc"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    require("unshare", tried.stderr or None)
    status, found = _doctor("unshare", "--mount", "sh", "-c", 'umount -l /proc; exec "$@"', "sh")
    assert status == 125
    assert {name for name, entry in found.items() if entry["status"] == "no"} == {
        "proc", "end-to-end",
    }  # fmt: skip
    assert "/proc/self/ns/mnt" in found["proc"]["detail"]
    assert all("could not be found out" not in entry["detail"] for entry in found.values()), found


@pytest.mark.usefixtures("can_run")
def test_alone_in_a_user_namespace_nothing_is_refused() -> None:
    unshare = ["unshare", "--user", "--map-root-user"]
    require("userns", None if shutil.which("unshare") else "no unshare(1)")
    tried = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    require("userns", tried.stderr or None)
    require("nobody", None if os.geteuid() == 0 else "not root, so that files are others'")
    status, found = _doctor(*unshare)
    assert status == 0
    assert found["end-to-end"]["status"] == "limited"
    assert "there is no other user to become" in found["end-to-end"]["detail"]
    assert "user namespace (uid_map: 0 0 1;" in found["container"]["detail"]


def test_a_container_says_who_it_is_and_reaches_no_terminal() -> None:
    result = subprocess.run(
        [*flagshim_command(), "doctor"], env={**os.environ, "container": "lxc\x1b[31m"},
        capture_output=True, text=True, timeout=SECONDS, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert re.search(r"^works +container +.*lxc\\x1b\[31m", result.stdout, re.MULTILINE)
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_versions_are_listed() -> None:
    _, found = _doctor()
    for version in (
        f"flagshim {__version__}",
        f"Python {platform.python_version()}",
        f"Linux {platform.release()}",
        f"click {importlib.metadata.version('click')}",
        f"python-ptrace {importlib.metadata.version('python-ptrace')}",
    ):
        assert version in found["versions"]["detail"]
    assert re.search(r"libseccomp \d+\.\d+\.\d+", found["versions"]["detail"])


def test_programs_of_32_bits() -> None:
    _, found = _doctor()
    assert found["i386"]["status"] == "works"
    runs = "programs of 32 bits run" in found["i386"]["detail"]
    assert runs == (reason_i386_unavailable() is None)
    require("i386", reason_i386_unavailable())
    assert runs


def test_i386_and_x32_agree_with_what_the_kernel_was_built_with() -> None:
    configuration = Path("/proc/config.gz")
    require("config.gz", None if configuration.exists() else "the kernel does not show it")
    text = subprocess.check_output(["zcat", configuration], text=True)
    _, found = _doctor()
    assert (found["x32"]["status"] == "limited") == ("CONFIG_X86_X32_ABI=y" in text)
    if "ia32_emulation" not in Path("/proc/cmdline").read_text():  # may be off at start
        runs = "programs of 32 bits run" in found["i386"]["detail"]
        assert runs == ("CONFIG_IA32_EMULATION=y" in text)


def test_a_qemu_that_hangs_is_a_finding(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    status, found = _doctor(env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert found["qemu"]["status"] == "limited"
    assert "does not tell its version" in found["qemu"]["detail"]
    assert status == _doctor()[0]


def test_a_qemu_that_needs_flagshim_is_told(tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\necho QEMU emulator version 4.2.1\n")
    program.chmod(0o755)
    _, found = _doctor(env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert found["qemu"]["detail"].startswith(f"{program} 4.2.1: it fails")


@pytest.mark.usefixtures("can_run")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_in_the_middle_of_a_probe_it_leaves_nothing(tmp_path: Path, number: int) -> None:
    """The fixture above says what would be left."""
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n: > {tmp_path}/started\nexec sleep 600\n")
    program.chmod(0o755)
    doctor = subprocess.Popen(  # which ignores what we ignore, as a job with "&" and nohup do
        ["env", "--default-signal", *flagshim_command(), "doctor"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    while not (tmp_path / "started").exists():
        with pytest.raises(subprocess.TimeoutExpired):
            doctor.wait(0.05)
    doctor.send_signal(number)
    said = doctor.communicate(timeout=SECONDS)[1].strip()
    if number == signal.SIGINT:
        assert (doctor.returncode, said) == (125, "flagshim: interrupted")
    else:
        assert (doctor.returncode, said) == (-number, "")


# --- what other tests ask -------------------------------------------------------------

_REASONS = """
from flagshim.probes import *
print(reason_ptrace_unavailable(), reason_seccomp_unavailable(), sep="\\n")
"""


@pytest.mark.usefixtures("can_run")
def test_the_reasons_name_the_probe_and_the_cause() -> None:
    reasons = subprocess.check_output(
        [sys.executable, "-c", _REASONS],
        preexec_fn=_refusing(pyseccomp.ERRNO(errno.EPERM), "ptrace"), text=True, cwd=REPOSITORY,
    )  # fmt: skip
    ptrace, seccomp = reasons.splitlines()
    assert ptrace.startswith("ptrace: a seccomp filter answers all of ptrace with EPERM")
    assert seccomp == "None"
