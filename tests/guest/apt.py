"""Debian packages without installing them: apt with settings, lists and archives of its own.

The machine's own settings are read, to go to the mirrors it uses, and left alone.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flagshim.errors import FlagshimError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Source(NamedTuple):
    """A line of sources.list(5)."""

    address: str
    suite: str
    component: str
    kind: str = "deb"
    """Or "deb-src"."""

    def __str__(self) -> str:
        return f"{self.kind} [signed-by={KEYRING}] {self.address} {self.suite} {self.component}"


def own_sources() -> list[Source]:
    """Where this machine gets Debian from."""
    form = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    chosen = ("Created-By: Packages", "Origin: Debian", "Component: main")
    listed = run(["apt-get", "indextargets", "--format", form, *chosen]).decode()
    sources = sorted({Source(*line.split()) for line in listed.splitlines()})
    if not sources:
        raise FlagshimError("apt knows no source of Debian packages", "run: apt-get update")
    return sources


def other_sources(own: Iterable[Source], codename: str, suite: str) -> list[Source]:
    """The same mirrors with another suite in the place of the machine's own.

    Args:
        codename: what the machine runs; its -security and -updates become the
            other suite's, unless that is itself a part of a release (trixie-backports).
    """
    ending = "" if "-" in suite else r"(-security|-updates)?"
    return [
        source._replace(suite=suite + (found[1] if found.groups() and found[1] else ""))
        for source in own
        if (found := re.fullmatch(re.escape(codename) + ending, source.suite))
    ]


@dataclass(frozen=True)
class Apt:
    """An apt that knows some sources and no installed package."""

    options: tuple[str, ...]

    @classmethod
    def prepare(cls, sources: Iterable[Source], home: Path) -> "Apt":
        """Fetch the lists of these sources into a new folder."""
        for name in ("lists/partial", "cache/archives/partial"):
            (home / name).mkdir(parents=True)
        (home / "sources.list").write_text("".join(f"{source}\n" for source in sources))
        settings = {
            "Dir::Etc::SourceList": home / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": home / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": home / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        apt = cls(tuple(word for name, to in settings.items() for word in ("-o", f"{name}={to}")))
        run(["apt-get", *apt.options, "update", "-qq"])
        return apt

    def names(self, prefix: str) -> list[str]:
        """Every package whose name starts so."""
        return self._ask("pkgnames", prefix).split()

    def depends(self, package: str) -> list[str]:
        """What the newest version of a package depends on, alternatives left out."""
        shown = self._ask("show", "--no-all-versions", package)
        found = re.search(r"^Depends: (.*)$", shown, flags=re.MULTILINE)
        parts = found[1].split(",") if found else []
        return [part.split()[0] for part in parts if "|" not in part]

    def unpack(self, package: str, target: Path) -> None:
        """Download a package and lay out its files below a folder; nothing of it is run."""
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            run(["apt-get", *self.options, "download", "-qq", package], cwd=scratch)
            for archive in Path(scratch).glob("*.deb"):
                run(["dpkg", "-x", str(archive), str(target)])

    def unpack_source(self, package: str, target: Path) -> None:
        """Download a source package (from sources that are deb-src), and unpack it as a folder.

        dpkg-source(1), of the package dpkg-dev, has to be there.
        """
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            run(["apt-get", *self.options, "source", "-qq", package], cwd=scratch)
            (unpacked,) = (path for path in Path(scratch).iterdir() if path.is_dir())
            unpacked.rename(target)

    def _ask(self, *words: str) -> str:
        return run(["apt-cache", *self.options, *words]).decode()


def run(command: list[str], cwd: str | None = None) -> bytes:
    """What a command prints.

    Raises:
        FlagshimError: with the last line of what it said, if it failed.
    """
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise FlagshimError(
            f"{command[0]} failed: {said.splitlines()[-1]}", "does apt-get update work here?"
        )
    return done.stdout
