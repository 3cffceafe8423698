"""BPF and QEMU: diagnose on Debian's, and the bpf engine in a guest whose kernel allows it."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.probes import reason_bpf_unavailable
from tests.support import REPOSITORY, flagshim_command, require

from .image import Image, image
from .requirements import obstacle
from .share import FILES
from .vm import Guest, GuestResult, Outcome, boot

KERNEL = "7.3"
"""Of trixie-backports; 6.12 and 6.18 do not."""
FIRST = Path(__file__).with_name("init-host")
STEPS = ("attach", "beside", "killed", "run", "cost")


@pytest.fixture(scope="module")
def done() -> Iterator[GuestResult]:
    """One boot with the host's userland, in which tests/guest/bpf_steps.py does all it has."""
    require("guest", obstacle())
    require("bpf", reason_bpf_unavailable())
    try:
        kernel = image(KERNEL, FIRST)
    except FlagshimError as error:
        require("guest", str(error))
        raise
    with tempfile.TemporaryDirectory(prefix="flagshim-bpf-") as folder:  # nobody runs what is in it
        os.chmod(folder, 0o755)
        yield _boot_with(kernel, Path(folder, "asked"))


def _boot_with(kernel: Image, program: Path) -> GuestResult:
    source = REPOSITORY / "tests/kernel/programs/asked.c"
    subprocess.run(["gcc", "-O1", "-o", str(program), str(source)], check=True)
    words = (
        f"flagshim.folder={REPOSITORY}",
        f"flagshim.python={sys.executable}",
        "flagshim.module=tests.guest.bpf_steps",
        f"flagshim.program={program}",
    )
    require("guest", None if not any(" " in word for word in words) else "a path with a space")
    return boot(
        Guest(
            kernel, Path("/"), user=None, fsdev=("multidevs=remap", "readonly=on"), words=words,
            memory="1G", timeout=600,  # one CPU: TCG with more trips over patched kernel text
        )
    )  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_step(done: GuestResult, step: str) -> None:
    assert done.outcome is Outcome.REPORTED, done.account
    assert done.steps[step].ok, done.account
    print(step, done.steps[step].detail)


def test_diagnose_finds_the_storm_of_debians_qemu(
    guest_image: Image, guest_share: Path, tmp_path: Path
) -> None:
    """It tries again by itself, so that the kernel's own answer is the evidence."""
    require("bpf", reason_bpf_unavailable())
    diagnose = (*flagshim_command(), "diagnose", "-u", "nobody", "-o", str(tmp_path / "t.db"), "--")
    result = boot(Guest(guest_image, guest_share, prefix=diagnose, user=None))
    assert result.outcome is Outcome.REPORTED, result.account
    assert not result.failed, result.account
    text = result.console
    storm = re.search(r"^Storm: (\d+) EPERM", text, re.MULTILINE)
    assert storm, result.account
    found = re.search(
        r"^1\. O_NOATIME on files owned by uid 0 by fsuid 65534: (\d+) EPERM, ([\d.]+) % of all",
        text,
        re.MULTILINE,
    )
    assert found, result.account
    assert found[1] == storm[1]
    assert int(found[1]) > FILES
    assert float(found[2]) > 90
    assert "certain: the program made each again without the flag" in text
    assert "remedy   flagshim run -u nobody -- qemu-system-x86_64" in text
