"""A program that opens a file with O_NOATIME when it is told to, and says what came of it."""

import subprocess
from pathlib import Path

from tests.support import REPOSITORY

_NOBODY = 65534

_ANSWERS = """
import os, sys
for line in sys.stdin:
    word = line.strip()
    if word == "fork":
        if os.fork():
            os.wait()
            continue
    try:
        os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_NOATIME))
        print("opened", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
    if word == "fork":
        os._exit(0)
"""


class Asked:
    """The program, running."""

    def __init__(self, file: Path, *supervised: str) -> None:
        self.process = subprocess.Popen(
            [*supervised, "/usr/bin/python3", "-c", _ANSWERS, str(file)], cwd=REPOSITORY,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            user=None if supervised else _NOBODY,
        )  # fmt: skip
        self.pid = self.process.pid

    def ask(self, word: str = "open") -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()
