"""GNU coreutils: `make check` of Debian's source package."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from flagshim.errors import FlagshimError
from tests.guest.apt import Apt, own_sources, run
from tests.guest.vm import user_prefix

from .suite import USER, Suite, Verdicts

_BUILD = (
    "./configure --quiet --disable-dependency-tracking --without-openssl --without-libgmp"
    " && make -s -j2 && make -s -j2 check TESTS="
)


class Coreutils(Suite):
    """Automake's test driver; a name is that of the .trs file it leaves for each test."""

    name = "coreutils"
    packages = ("dpkg-dev", "gcc", "libc6-dev", "make", "gdb", "strace")
    seconds = 2400
    tracers = ("gdb", "strace")

    def version(self) -> str:
        return f"GNU coreutils {(self.folder() / '.tarball-version').read_text().strip()}"

    def folder(self) -> Path:
        return self.home / "source"

    def prepare(self) -> None:
        if (self.folder() / "src/coreutils").exists() or (self.folder() / "src/ls").exists():
            return
        shutil.rmtree(self.folder(), ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            sources = [source._replace(kind="deb-src") for source in own_sources()]
            Apt.prepare(sources, Path(scratch, "apt")).unpack_source("coreutils", self.folder())
        run(["chown", "-R", f"{USER}:", str(self.folder())])
        with open(self.home / "build.log", "wb") as log:
            built = subprocess.run(
                [*user_prefix(USER), "sh", "-c", _BUILD], cwd=self.folder(), check=False,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.home)},
            )  # fmt: skip
        if built.returncode:
            raise FlagshimError("coreutils cannot be built", f"see {self.home}/build.log")

    def command(self, only: Collection[str]) -> Sequence[str]:
        if not only:
            return ("make", "-k", "-j2", "check")
        logs = sorted(f"{name}.log" for name in only)
        gnulib = [log.removeprefix(_GNULIB) for log in logs if log.startswith(_GNULIB)]
        own = [log for log in logs if not log.startswith(_GNULIB)]
        parts = []
        if own:
            parts.append(f"make -k check SUBDIRS=. TEST_LOGS='{' '.join(own)}'")
        if gnulib:
            parts.append(f"make -k -C {_GNULIB} check-TESTS TEST_LOGS='{' '.join(gnulib)}'")
        return ("sh", "-c", "; ".join(parts))

    def clear(self) -> None:
        for result in self._results():
            result.unlink()

    def verdicts(self, said: str) -> Verdicts:
        found = {}
        for result in self._results():
            name = str(result.relative_to(self.folder()).with_suffix(""))
            (line,) = [x for x in result.read_text().splitlines() if x.startswith(":test-result:")]
            verdict = line.split()[1]
            found[name] = {"PASS": "pass", "XFAIL": "pass", "SKIP": "skip"}.get(verdict, "fail")
        return found

    def _results(self) -> Iterator[Path]:
        return self.folder().rglob("*.trs")


_GNULIB = "gnulib-tests/"
