"""CPython's own tests, as Debian packages them: libpython3.11-testsuite."""

import re
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from xml.etree import ElementTree

from .suite import Suite, Verdicts

PYTHON = "/usr/bin/python3.11"


class CPython(Suite):
    """test.regrtest; a name is that of a method, which is run again with its whole module."""

    name = "cpython"
    packages = ("libpython3.11-testsuite", "python3.11")
    seconds = 2400
    tracers = ("gdb",)

    def version(self) -> str:
        return f"C{subprocess.check_output([PYTHON, '--version'], text=True).strip()}"

    def command(self, only: Collection[str]) -> Sequence[str]:
        modules = sorted({name.removeprefix("test.").split(".")[0] for name in only})
        return (PYTHON, "-m", "test", "-j2", "--timeout", "600", "--junit-xml",
                str(self._report), *modules)  # fmt: skip

    def clear(self) -> None:
        self._report.unlink(missing_ok=True)

    def verdicts(self, said: str) -> Verdicts:
        # A module that crashed or hung has no methods in there.
        found = dict.fromkeys(re.findall(r"\] (\w+) (?:crashed|timed out) ", said), "fail")
        if not self._report.exists():
            return found
        for case in ElementTree.parse(self._report).iter("testcase"):
            tags = {child.tag for child in case}
            verdict = "fail" if tags & {"error", "failure"} else "skip" if "skipped" in tags else ""
            name = case.get("name", "")
            # Names may come more than once: once failed is failed, once passed is not skipped.
            ranked = ("fail", "pass", "skip")
            found[name] = min(found.get(name, "skip"), verdict or "pass", key=ranked.index)
        return found

    @property
    def _report(self) -> Path:
        return self.home / "report.xml"
