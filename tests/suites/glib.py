"""GLib's installed tests, run as GNOME runs them."""

import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from .suite import USER, Suite, Verdicts


class GLib(Suite):
    """gnome-desktop-testing-runner; a name is program.test:/case, run again with its program."""

    name = "glib"
    packages = ("libglib2.0-tests", "gnome-desktop-testing", "gdb")
    seconds = 1800
    tracers = ("gdb",)

    def version(self) -> str:
        shown = ["dpkg-query", "-W", "-f", "${Version}", "libglib2.0-0"]
        return f"GLib {subprocess.check_output(shown, text=True)}"

    def command(self, only: Collection[str]) -> Sequence[str]:
        programs = sorted({name.partition(":")[0] for name in only})
        return ("gnome-desktop-testing-runner", "--parallel", "2", "--log-directory",
                str(self._logs), *(f"glib/{program}" for program in programs or ("",)))  # fmt: skip

    def clear(self) -> None:
        shutil.rmtree(self._logs, ignore_errors=True)
        self._logs.mkdir()
        shutil.chown(self._logs, USER)

    def verdicts(self, said: str) -> Verdicts:
        found = {}
        for verdict, program in re.findall(r"^(PASS|FAIL|SKIP): glib/(\S+)", said, re.MULTILINE):
            found[program] = verdict.lower()
        for log in self._logs.glob("*.txt"):
            for failed, case, rest in re.findall(
                r"^(not )?ok \d+ (\S+)(.*)$", log.read_text(errors="replace"), re.MULTILINE
            ):
                skipped = re.search(r"# (SKIP|TODO)", rest)
                verdict = "skip" if skipped else "fail" if failed else "pass"
                found[f"{log.stem.removeprefix('glib_')}:{case}"] = verdict
        return found

    @property
    def _logs(self) -> Path:
        return self.home / "logs"
