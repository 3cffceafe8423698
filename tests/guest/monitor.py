"""QEMU's machine protocol (QMP), spoken by QEMU's own library."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from qemu.qmp.legacy import QEMUMonitorProtocol

from .machine import SECONDS, wait_until


class Monitor:
    """A connection to a QEMU that has answered its greeting."""

    def __init__(self, protocol: QEMUMonitorProtocol) -> None:
        self._protocol = protocol

    def ask(self, command: str, **arguments: object) -> object:
        """Give a command and return its answer."""
        return self._protocol.cmd(command, **arguments)

    def typed(self, line: str) -> str:
        """Give a command of the human monitor, and return what it prints."""
        return str(self.ask("human-monitor-command", **{"command-line": line}))

    def wait_for(self, event: str, seconds: float = SECONDS) -> dict[str, object]:
        """Wait for an event; return its data, without times and addresses."""
        while True:
            found = self._protocol.pull_event(seconds)
            assert found is not None
            if found["event"] == event:
                return dict(found.get("data", {}))


@contextlib.contextmanager
def monitor(where: socket.socket | Path) -> Iterator[Monitor]:
    """Talk to the QEMU at the other end of a socket, or that listens at a path."""
    if isinstance(where, Path):
        where = _connected(where)
    protocol = QEMUMonitorProtocol(where)
    protocol.settimeout(SECONDS)
    protocol.connect()
    try:
        yield Monitor(protocol)
    finally:
        with contextlib.suppress(EOFError, ConnectionError):  # QEMU has ended
            protocol.close()


def _connected(path: Path) -> socket.socket:
    """A connection to whoever listens, or will soon; a dead QEMU may have left its socket there."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)

    def connects() -> bool:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    wait_until(connects, f"a QEMU listens at {path}")
    return connection
