"""flagshim: run an unchanged program with the open flags the kernel would refuse cleared.

    with flagshim.supervise(["qemu-system-x86_64", …]) as vm: …
    vm.events

docs/library.md tells more. What is named in `__all__` is the library; all else may change.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flagshim.errors import FlagshimError
    from flagshim.supervised import Completed, Supervised, run, supervise
    from flagshim.trace.events import OpenEvent
    from flagshim.trace.reader import TraceReader
    from flagshim.trace.records import BlindSpot, Session

__version__ = "0.1.0"

__all__ = [
    "BlindSpot",
    "Completed",
    "FlagshimError",
    "OpenEvent",
    "Session",
    "Supervised",
    "TraceReader",
    "__version__",
    "run",
    "supervise",
]

_HOME = {
    "BlindSpot": "flagshim.trace.records",
    "Completed": "flagshim.supervised",
    "FlagshimError": "flagshim.errors",
    "OpenEvent": "flagshim.trace.events",
    "Session": "flagshim.trace.records",
    "Supervised": "flagshim.supervised",
    "TraceReader": "flagshim.trace.reader",
    "run": "flagshim.supervised",
    "supervise": "flagshim.supervised",
}


def __getattr__(name: str) -> object:
    """Import what is asked for: the command line, too, begins with this module."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
