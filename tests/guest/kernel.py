"""A guest's kernel: one of Debian's, taken from its package without being installed.

Which one: what FLAGSHIM_GUEST_KERNEL says, a version ("6.12": the newest 6.12 of
this Debian or of OTHER_SUITES) or the exact name of a package, and else DEFAULT.
Once there it is kept: delete its folder in the cache to get a newer one.
"""

import os
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flagshim.errors import FlagshimError

from . import cache
from .apt import Apt, other_sources, own_sources
from .packed import decompressed, unpacked_kernel

VARIABLE = "FLAGSHIM_GUEST_KERNEL"
DEFAULT = "6.1"
"""Debian's last kernel that hands O_NOATIME on to a 9p server.

6.12 and 7.3 were tried and do not: p9_client_open() masks the flags since "9p: Add
additional debug flags and open modes" (P9L_MODE_MASK, include/net/9p/9p.h).
"""
OTHER_SUITES = ("bookworm", "trixie", "trixie-backports")

MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
"""What the guest needs, if it is not built in; what these depend on comes with them."""


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache; `modules` are plain .ko files in the order to load them."""

    release: str
    image: Path
    modules: tuple[Path, ...]


def kernel(wanted: str | None = None) -> Kernel:
    """The kernel asked for, downloaded if the cache has none.

    Args:
        wanted: as FLAGSHIM_GUEST_KERNEL, which is used if this is None.

    Raises:
        FlagshimError: there is none such, or it could not be downloaded.
    """
    if wanted is None:
        wanted = os.environ.get(VARIABLE, "")
    wanted = wanted or DEFAULT
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", wanted):
        raise FlagshimError(f"{VARIABLE}={wanted}: neither a version nor a package's name")
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    target = cache.folder("kernel") / f"{codename}-{wanted}"
    if not target.is_dir():
        with cache.built(target) as unfinished:
            _build(wanted, codename, unfinished)
    return Kernel(
        release=(target / "release").read_text().strip(),
        image=target / "kernel",
        modules=tuple(sorted((target / "modules").iterdir())),
    )


def newest(version: str, names: Iterable[str]) -> str | None:
    """The package among `names` that is the newest kernel of a version.

    Of linux-image-6.1.0-56-amd64, linux-image-6.12.117+deb13-amd64 and the like;
    -cloud- (without 9p), -rt-, -unsigned and -dbg are not meant.
    """
    pattern = rf"linux-image-{re.escape(version)}(?!\d)[0-9a-z.+]*(-\d+)?-amd64"
    found = [name for name in names if re.fullmatch(pattern, name)]
    return max(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], default=None)


def _build(wanted: str, codename: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="apt-", dir=target.parent) as scratch:
        apt, packages = _resolve(wanted, codename, Path(scratch))
        unpacked = Path(scratch, "unpacked")
        for package in packages:
            apt.unpack(package, unpacked)
        # boot/vmlinuz-RELEASE, or since 7.x usr/lib/modules/RELEASE/vmlinuz
        images = list(unpacked.rglob("vmlinuz*"))
        releases = [listing.parent.name for listing in unpacked.rglob("modules.builtin")]
        if not images or not releases:
            raise FlagshimError(f"{', '.join(packages)}: no kernel in there", f"check {VARIABLE}")
        (target / "kernel").write_bytes(unpacked_kernel(images[0].read_bytes()))
        (target / "release").write_text(f"{releases[0]}\n")
        (target / "modules").mkdir()
        for number, (name, content) in enumerate(_load_order(unpacked)):
            (target / "modules" / f"{number:02}-{name}.ko").write_bytes(content)
    for path in (target, *target.rglob("*")):
        cache.readable(path)


def _resolve(wanted: str, codename: str, scratch: Path) -> tuple[Apt, list[str]]:
    """The packages that make up the kernel asked for, and the apt that has them."""
    own = own_sources()
    others = [source for suite in OTHER_SUITES for source in other_sources(own, codename, suite)]
    for number, sources in enumerate((own, sorted({*own, *others}))):
        apt = Apt.prepare(sources, scratch / f"apt{number}")
        names = apt.names("linux-image-")
        found = newest(wanted, names) if wanted[0].isdigit() else wanted
        if found in names:
            return apt, _parts(found, apt)
    raise FlagshimError(
        f"no kernel {wanted} in this Debian nor in {', '.join(OTHER_SUITES)}",
        f"set {VARIABLE} to a version or a linux-image package that is there",
    )


def _parts(package: str, apt: Apt) -> list[str]:
    """The packages to unpack: a metapackage's kernel, and what it has been split into.

    Debian's 7.x kernels come as linux-base-X, linux-binary-X and linux-modules-X,
    which an empty linux-image-X depends on.
    """
    if not re.match(r"linux-image-\d", package):
        package = next(name for name in apt.depends(package) if name.startswith("linux-image-"))
    release = package.removeprefix("linux-image-")
    split = [f"linux-{part}-{release}" for part in ("base", "binary", "modules")]
    return [package, *(name for name in apt.depends(package) if name in split)]


def _load_order(unpacked: Path) -> Iterator[tuple[str, bytes]]:
    """MODULES and what they need, dependencies first, by name and content.

    modules.dep comes with installation (depmod(8)); each module also names what
    it depends on itself, as depends=A,B in its section .modinfo.
    """
    files = {_module_name(path): path for path in unpacked.rglob("*.ko*")}
    done = {
        _module_name(Path(line))
        for listing in unpacked.rglob("modules.builtin")
        for line in listing.read_text().splitlines()
    }

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done:
            return
        done.add(name)
        if name not in files:
            raise FlagshimError(f"this kernel has no module {name}", f"check {VARIABLE}")
        content = decompressed(files[name].read_bytes())
        found = re.search(rb"\0depends=([^\0]+)\0", content)
        for dependency in found[1].decode().split(",") if found else ():
            yield from load(dependency.replace("-", "_"))
        yield name, content

    for name in MODULES:
        yield from load(name)


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")
