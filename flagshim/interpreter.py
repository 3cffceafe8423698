"""Starting flagshim itself from a Python program that has imported it."""

import os
import sys

_MAIN = "import sys; sys.path += sys.argv.pop(1).split(':'); from flagshim.cli import main; main()"


def ourselves() -> list[str]:
    """Return the beginning of a command line that runs flagshim, from anywhere, in any environment.

    The environment is CMD's, so nothing in it may matter (-E), nor the folder one is in (-P). And
    what this program can import, the other must find too: the test driver of NixOS, among others,
    knows its packages from its own start script, not from where its interpreter is.
    """
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return [sys.executable, "-E", "-P", "-c", _MAIN, path]
