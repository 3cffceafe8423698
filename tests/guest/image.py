"""What a guest boots: Debian's kernel and an initramfs of busybox, modules and `init`."""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from flagshim.errors import FlagshimError

from . import cache
from .cpio import Archive
from .kernel import Kernel, kernel

BUSYBOX = Path("/bin/busybox")
INIT = Path(__file__).with_name("init")


@dataclass(frozen=True)
class Image:
    """Two files that QEMU's -kernel and -initrd take."""

    release: str
    kernel: Path
    initrd: Path


def image(wanted: str | None = None, first: Path = INIT) -> Image:
    """The image for a kernel (see kernel.py), from the cache or built into it.

    Args:
        wanted: as for `kernel`.
        first: what the guest runs as its first program.
    """
    found = kernel(wanted)
    init, busybox = first.read_bytes(), static_busybox()
    digest = hashlib.sha256(init + busybox).hexdigest()[:16]
    initrd = found.image.parent / f"initrd-{digest}.cpio"
    if not initrd.exists():
        cache.write(initrd, _initramfs(found, init, busybox))
    return Image(found.release, found.image, initrd)


def static_busybox() -> bytes:
    """Debian's busybox-static; its package busybox puts a dynamic one at the same place."""
    try:
        content = BUSYBOX.read_bytes()
    except FileNotFoundError:
        content = b""
    if not content or _is_dynamic(content):
        raise FlagshimError(f"{BUSYBOX} is not static", "run: apt-get install busybox-static")
    return content


def _is_dynamic(elf: bytes) -> bool:
    """Whether a 64-bit ELF file asks for an interpreter (PT_INTERP, elf(5))."""
    (offset,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    return any(struct.unpack_from("<I", elf, offset + size * at)[0] == 3 for at in range(count))


def _initramfs(found: Kernel, init: bytes, busybox: bytes) -> bytes:
    # Not compressed: unpacking costs an emulated processor more than reading does.
    archive = Archive()
    for name in ("bin", "modules"):
        archive.folder(name)
    archive.file("bin/busybox", busybox, 0o755)
    archive.file("init", init, 0o755)
    for module in found.modules:
        archive.file(f"modules/{module.name}", module.read_bytes())
    return archive.finish()
