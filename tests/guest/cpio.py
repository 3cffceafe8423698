"""Archives that the kernel unpacks as an initramfs: the "newc" kind of cpio(5).

https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
"""

import stat
from dataclasses import dataclass, field


@dataclass
class Archive:
    """Collects entries; every one belongs to root and carries no time, so equal input is equal."""

    _parts: list[bytes] = field(default_factory=list)
    _inode: int = 0

    def folder(self, name: str) -> None:
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._add(name, stat.S_IFREG | mode, content)

    def finish(self) -> bytes:
        """The whole archive, with the entry that marks its end."""
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _add(self, name: str, mode: int, content: bytes) -> None:
        path = name.encode() + b"\0"
        self._inode += 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        numbers = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self._parts += [_padded(header + path), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
