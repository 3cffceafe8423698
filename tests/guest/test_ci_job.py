"""A CI job with a guest under flagshim, run as GitHub's runner runs one: reports and gate.

The first boot makes the baseline, the second passes with it, the third opens one file more.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .image import Image
from .vm import TIMEOUT, Guest, qemu_command

FILES = 29
"""So few that the baseline names each."""

AGREE = "flagshim baseline boot.db > opens.txt"
BOOT = "flagshim run -u nobody -o boot.db $GATE -- $QEMU < /dev/null > console"
"""The step that fails the job; $QEMU is a command of tests/guest/vm.py."""
REPORT = """
flagshim report boot.db $GATE --format junit > junit.xml || true
flagshim report boot.db $GATE --format gitlab > codequality.json || true
flagshim report boot.db $GATE --format html > boot.html || true
flagshim report boot.db $GATE --format github
"""
"""The step that follows `if: always()`."""


@dataclass(frozen=True)
class Step:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Job:
    """A job's folder and its two steps."""

    place: Path
    boot: Step
    report: Step
    summary: str


def step(place: Path, script: str, **environment: str) -> Step:
    """Run a step: `run:` in a workflow is bash -e in a file, without a terminal."""
    file = place / "step.sh"
    file.write_text(script)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(file)],
        cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=TIMEOUT,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(place),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_STEP_SUMMARY": str(place / "summary.md"),
            "CI_PROJECT_DIR": str(place),
            **environment,
        },
    )  # fmt: skip
    return Step(done.returncode, done.stdout, done.stderr)


def job(place: Path, guest: Guest, gate: str) -> Job:
    place.mkdir()
    qemu = shlex.join(qemu_command(guest))
    boot = step(place, BOOT.replace("$QEMU", qemu).replace("$GATE", gate))
    assert re.search(r"^FLAGSHIM-DONE", (place / "console").read_text(), re.M), boot
    report = step(place, REPORT.replace("$GATE", gate))
    return Job(place, boot, report, (place / "summary.md").read_text())


@pytest.fixture(scope="module")
def jobs(
    tmp_path_factory: pytest.TempPathFactory, guest_image: Image, guest_share: Path
) -> tuple[Job, Job, Job]:
    place = tmp_path_factory.mktemp("ci")
    files = (FILES, FILES, FILES + 1)
    guests = [Guest(guest_image, guest_share, user=None, mode="bench", files=n) for n in files]
    first = job(place / "first", guests[0], "--fail-on refusals --fail-on 'lost events'")
    agreed = step(first.place, AGREE)
    assert agreed.status == 0, agreed
    gate = f"--baseline {first.place / 'opens.txt'}"
    return first, job(place / "same", guests[1], gate), job(place / "more", guests[2], gate)


def new_file(share: Path) -> str:
    return f"{share}/files/{FILES:05}"


def checks(job: Job) -> list[str]:
    """What GitLab is told; but not that QEMU has an io_uring, which depends on the host."""
    issues = json.loads((job.place / "codequality.json").read_text())
    return [issue["check_name"] for issue in issues if issue["check_name"] != "flagshim/unseen"]


def test_the_first_run_passes_and_its_baseline_names_the_files(
    jobs: tuple[Job, Job, Job], guest_share: Path
) -> None:
    first, _, _ = jobs
    assert (first.boot.status, first.report.status) == (0, 0), first
    assert first.boot.out == "", "only CMD writes on standard output, and to its own file"
    text = (first.place / "opens.txt").read_text()
    named = re.findall(rf"^rewritten +noatime +qemu-system-x86_64 +({guest_share}/files/\d+)$",
                       text, re.M)  # fmt: skip
    assert named == [f"{guest_share}/files/{n:05}" for n in range(FILES)]


def test_the_same_again_passes(jobs: tuple[Job, Job, Job]) -> None:
    _, same, _ = jobs
    assert (same.boot.status, same.report.status) == (0, 0), same
    assert same.boot.err.splitlines()[-1] == "flagshim: gate passed"
    root = ElementTree.parse(same.place / "junit.xml").getroot()
    assert (root.get("failures"), root.get("errors")) == ("0", "0")
    assert int(root.get("tests", "0")) > FILES
    assert "Gate: ✅ passed" in same.summary
    assert "::error" not in same.report.out
    assert checks(same) == []


def test_one_new_path_fails_and_is_shown(jobs: tuple[Job, Job, Job], guest_share: Path) -> None:
    _, _, more = jobs
    assert (more.boot.status, more.report.status) == (122, 122), more
    new = new_file(guest_share)
    shown = [line for line in more.boot.err.splitlines() if line.startswith("  ")]
    assert len(shown) == 1, shown
    assert re.fullmatch(rf"  \+ rewritten  noatime  qemu-system-x86_64  {new}  \(\d+x\)", shown[0])
    assert "gate failed: rewrites > 0" in more.boot.err


def test_the_reports_of_a_failed_job_say_it_too(
    jobs: tuple[Job, Job, Job], guest_share: Path
) -> None:
    _, _, more = jobs
    new = new_file(guest_share)
    root = ElementTree.parse(more.place / "junit.xml").getroot()
    failed = [
        case.get("name") for case in root.iter("testcase") if case.find("failure") is not None
    ]
    assert failed == ["not rewrites > 0", f"{new} (noatime)"]
    assert "Gate: ❌ failed" in more.summary
    assert new in more.summary
    assert re.search(r"^::error title=flagshim%3A gate::rewrites > 0: \d+ beyond", more.report.out)
    assert f"opened {new} " in more.report.out
    assert checks(more) == ["flagshim/gate", "flagshim/rewritten"]
    assert new in (more.place / "boot.html").read_text()
