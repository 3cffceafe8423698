"""Runs `flagshim report`, in this process or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from flagshim.cli.report import report

ROOT = Path(__file__).parents[2]


def run(*arguments) -> str:
    result = CliRunner().invoke(report, [os.fspath(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout_bytes.decode()


def usage_error(*arguments) -> str:
    result = CliRunner().invoke(report, [os.fspath(argument) for argument in arguments])
    assert result.exit_code == 2
    return result.output


def process(*arguments, **options) -> subprocess.Popen:
    """The command in a process of its own, as flagshim's main() runs it."""
    code = (
        "import sys; from flagshim.cli.report import report; from flagshim.errors import *\n"
        "try: report.main(sys.argv[1:], standalone_mode=False)\n"
        "except FlagshimError as error: sys.exit(f'flagshim: {error}')\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, **options)
