"""`python -m tests.suites [SUITE…]`: see the package's docstring."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import tests.suites
from flagshim.errors import EXIT_FAILURE, FlagshimError
from tests.guest import cache
from tests.guest.apt import run

from .comparison import Comparison, compare, table
from .coreutils import Coreutils
from .cpython import CPython
from .glib import GLib
from .golang import Go
from .suite import USER, Suite, Verdicts

SUITES: tuple[type[Suite], ...] = (Coreutils, CPython, GLib, Go)


def main() -> int:
    """Run the suites asked for, print the table, and return the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and clean up
    chosen = [suite for suite in SUITES if suite.name in (options.suites or _NAMES)]
    try:
        if os.geteuid() != 0:
            raise FlagshimError(
                "the suites are run as nobody", "only root can do that; run as root"
            )
        with tempfile.TemporaryDirectory() as scratch:
            found = [_compared(suite, Path(scratch)) for suite in chosen]
    except (FlagshimError, subprocess.SubprocessError) as error:
        print(f"suites: {error}", file=sys.stderr)
        return EXIT_FAILURE
    print(table(found))
    return 1 if any(comparison.real for comparison in found) else 0


_NAMES = tuple(suite.name for suite in SUITES)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.suites", description=tests.suites.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(_NAMES)}",
                        choices=[*_NAMES, []])  # fmt: skip
    return parser.parse_args()


def _compared(kind: type[Suite], scratch: Path) -> Comparison:
    home = cache.folder("suites", kind.name)
    shutil.chown(home, USER)
    _install(kind.packages)
    suite = kind(home)
    suite.prepare()
    count = 0

    def native(only: Collection[str]) -> Verdicts:
        return suite.run(None, only)

    def flagshim(only: Collection[str]) -> Verdicts:
        nonlocal count
        count += 1
        return suite.run(scratch / f"{suite.name}{count}.db", only)

    return compare(suite.version(), native, flagshim, suite.declining)


def _install(packages: Collection[str]) -> None:
    """Install what is missing, with the machine's own apt."""
    shown = ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\n", *packages]
    listed = subprocess.run(shown, capture_output=True, text=True, check=False)
    if listed.returncode or any(not line.startswith("ii") for line in listed.stdout.splitlines()):
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages])


if __name__ == "__main__":
    sys.exit(main())
