"""Mounts that show other owners, and other roots: what is kept, what is cleared, which paths."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.conftest import NOBODY, SECONDS, Build, Place, Runner
from tests.kernel.ways import Way
from tests.support import REPOSITORY, require

DAEMON = 1
NOT_MAPPED = 4711


@pytest.fixture
def tree(place: Place) -> tuple[Path, Path]:
    """A folder to be mounted elsewhere, with a file in it, and the place to mount it on."""
    source, target = place.path / "source", place.path / "target"
    for folder in (source, target):
        folder.mkdir()
    (source / "file").write_text("content\n")
    return source, target


@pytest.mark.parametrize(
    ("owner", "disk", "seen", "natively", "after", "event"),
    [
        # The mount makes the caller the owner: allowed, and the flag stays.
        (0, 0, NOBODY, "noatime 1", "noatime 1", ("kept", "allowed by the kernel", NOBODY, 1)),
        # On disk the caller is the owner, by the mount it is not.
        (NOBODY, NOBODY, DAEMON, "errno 1", "noatime 0", ("cleared", "owner is not fsuid", 1, 1)),
        # The owner is not mapped: stat(2) says 65534, who is the caller, but means nobody at all.
        (NOT_MAPPED, 0, 0, "errno 1", "noatime 0", ("cleared", "refused by the kernel", NOBODY, 2)),
    ],
    ids=["to-the-caller", "away-from-the-caller", "unmapped"],
)
def test_idmapped_mount(
    build: Build, run: Runner, tree: tuple[Path, Path], owner: int, disk: int, seen: int,
    natively: str, after: str, event: tuple[object, ...],
) -> None:  # fmt: skip
    source, target = tree
    os.chown(source / "file", owner, owner)
    # flagshim is in the namespace too, so that it could be misled by what it foresees.
    mounted = [build("idmap"), str(disk), str(seen), str(source), str(target)]
    opens = [build("odd"), "open", str(target / "file")]
    alone = run.native([*mounted, "setpriv", "--reuid=nobody", "--clear-groups", *opens], user=0)
    require("idmap", "no idmapped mounts here" if alone.returncode == 77 else None)
    assert alone.stdout.strip() == natively
    result = subprocess.run(
        [*mounted, *run.command(opens)], capture_output=True, text=True, check=False,
        timeout=SECONDS, cwd=REPOSITORY,
    )  # fmt: skip
    assert (result.returncode, result.stdout.strip()) == (0, after), result.stderr
    assert run.last().events("decision, reason, owner_uid, tries") == [event]


@pytest.mark.parametrize("name", ["file", "etc/passwd"])
def test_detached_tree(
    build: Build, run: Runner, way: Way, tree: tuple[Path, Path], name: str
) -> None:
    """It is nowhere in the namespace, so what /proc calls its files means others there."""
    source, _ = tree
    file = source / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("content\n")
    argv = [build("idmap"), "0", str(NOBODY), str(source), "-", build("odd"), "at", name, "9"]
    alone = run.native(argv, user=0)
    require("idmap", "no idmapped mounts here" if alone.returncode == 77 else None)
    assert alone.stdout == "noatime 1\n"
    shim = way(argv, user=None)
    assert (shim.status, shim.out) == (0, "noatime 1\n"), shim.err
    assert shim.events("decision, owner_uid, resolved") == [("kept", NOBODY, f"/{name}")]


@pytest.mark.parametrize("mode", ["pivot", "mount", "chroot"])
def test_paths_elsewhere(build: Build, run: Runner, way: Way, place: Place, mode: str) -> None:
    """As asked for; and as the program's namespace has it, or the host's under chroot."""
    folder = place.path / "root"
    folder.mkdir()
    argv = [build("jail"), mode, str(folder)]
    alone = run.native(argv, user=0)
    require("mounts", "no tmpfs, no mount namespaces" if alone.returncode == 77 else None)
    assert alone.stdout == "errno 1\nerrno 2\nerrno 1\nerrno 2\n"
    shim = way(argv, user=None)
    assert shim.out == "noatime 0 1\nerrno 2\nnoatime 0 1\nerrno 2\n", shim.err
    inside = {"pivot": "/inside", "mount": f"{folder}/inside", "chroot": f"{folder}/inside"}[mode]
    asked = f"{folder}/inside" if mode == "mount" else "/inside"
    tries = 1 if way.holds_by_listener else 2
    assert shim.events("path, resolved, decision, errno, tries") == [
        (f"{asked}/inner", f"{inside}/inner", "cleared", None, tries),
        (f"{asked}/absent", f"{inside}/absent", "kept", "ENOENT", 1),
        ("inner", f"{inside}/inner", "cleared", None, tries),
        ("absent", f"{inside}/absent", "kept", "ENOENT", 1),
    ]


def test_path_rule_in_a_chroot(way: Way, place: Place) -> None:
    """Compared with the host's name, from the first open after chroot(2) on."""
    code = (
        "import os, sys\n"
        "for root, path in ((None, sys.argv[2]), (sys.argv[1], '/file'), (None, 'file')):\n"
        "    if root: os.chroot(root); os.chdir('/'); os.setuid(65534)\n"
        "    print(os.open(path, os.O_RDONLY | os.O_NOATIME) > 0)\n"
    )
    argv = ["/usr/bin/python3", "-c", code, str(place.path), str(place.file)]
    shim = way(argv, "--path", f"{place.path}/**", user=None)
    assert shim.out == "True\n" * 3, shim.err
    assert shim.events("path, resolved, decision") == [
        (str(place.file), str(place.file), "kept"),
        ("/file", str(place.file), "cleared"),
        ("file", str(place.file), "cleared"),
    ]


def test_mount_that_was_taken_away(build: Build, run: Runner, way: Way, place: Place) -> None:
    """A directory in no namespace at all: its files are served, and named from its mount's root."""
    argv = [build("jail"), "lazy", str(place.path)]
    alone = run.native(argv, user=0)
    require("mounts", "no tmpfs, no mount namespaces" if alone.returncode == 77 else None)
    assert alone.stdout == "errno 1\nerrno 2\n"
    shim = way(argv, user=None)
    assert shim.out == "noatime 0 1\nerrno 2\n"
    assert shim.events("path, resolved, decision, errno") == [
        ("inner", "/inside/inner", "cleared", None),
        ("absent", "/inside/absent", "kept", "ENOENT"),
    ]
