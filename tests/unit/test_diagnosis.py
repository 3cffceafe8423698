"""From evidence to a cause, and from many events to one account."""

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from flagshim.diagnosis import evidence
from flagshim.diagnosis.causes import Cause, Explanation, Sureness, explain
from flagshim.diagnosis.collection import STORM_PER_SECOND, Collection
from flagshim.diagnosis.evidence import Evidence, Look, Mount, Who, from_event
from flagshim.linux.files import Inode
from flagshim.reports.diagnosis import Scope, text_of
from flagshim.trace.events import OpenEvent

NOBODY = 65534
EVERYBODY = ((0, 4294967295),)
NOATIME = os.O_NOATIME


def event(**changes: object) -> OpenEvent:
    base = OpenEvent(
        10**9, 42, 42, "qemu", "openat", "x86_64", "/file", "/file", "r", NOATIME, NOATIME, "kept",
        None, "only watched", None, None, None, "EPERM", 1,
    )  # fmt: skip
    return base._replace(**changes)


def who(**changes: object) -> Who:
    base = Who(NOBODY, False, False, EVERYBODY, 0, "", ("qemu", "-m", "1G"), "")
    return base._replace(**changes)


def inode(owner: int = 0, *attributes: str) -> Inode:
    return Inode(owner, frozenset(attributes), 1, 1)


def cause(**evidence: object) -> tuple[Cause, Sureness]:
    explanation = explained(**evidence)
    return explanation.cause, explanation.sureness


def explained(**evidence: object) -> Explanation:
    evidence.setdefault("event", event())
    return explain(Evidence(**evidence))


@pytest.mark.parametrize(
    ("euid", "user"), [(0, ("-u", "nobody")), (NOBODY, ())], ids=["root", "ordinary"]
)
def test_o_noatime_by_who_is_not_the_owner(
    euid: int, user: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    found = explained(who=who(), inode=inode(0))
    assert found[:3] == (
        Cause.NOATIME, f"O_NOATIME on files owned by uid 0 by fsuid {NOBODY}", Sureness.CERTAIN,
    )  # fmt: skip
    assert found.commands == (
        ("flagshim", "attach", "42"), ("flagshim", "run", *user, "--", "qemu", "-m", "1G"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({"who": who(cap_fowner=True, uid_map=((100_000, 65536),)), "inode": inode(0)},
         (Cause.NOATIME, Sureness.CERTAIN)),
        ({"who": who(), "inode": inode(NOBODY), "mount": Mount("ext4", "/", True)},
         (Cause.NOATIME, Sureness.LIKELY)),
        ({"event": event(owner_uid=0, fsuid=NOBODY)}, (Cause.NOATIME, Sureness.LIKELY)),
        ({"who": who()}, (Cause.NOATIME, Sureness.GUESS)),
        ({"event": event(decision="cleared", reason="refused by the kernel", errno=None),
          "who": who()}, (Cause.NOATIME, Sureness.CERTAIN)),
        ({"event": event(decision="cleared", reason="refused by the kernel"), "who": who(),
          "inode": inode(NOBODY)}, (Cause.UNKNOWN, Sureness.GUESS)),
        ({"who": who(seccomp=2), "inode": inode(0), "began": False},
         (Cause.SECCOMP, Sureness.CERTAIN)),
        # Begun before anybody looked: a process without a filter was not refused by one.
        ({"who": who(), "inode": inode(0), "began": False}, (Cause.NOATIME, Sureness.CERTAIN)),
        ({"event": event(reason="refused before it began"), "began": False},
         (Cause.SECCOMP, Sureness.CERTAIN)),
        ({"event": event(access="w"), "who": who(), "inode": inode(0, "append-only")},
         (Cause.APPEND_ONLY, Sureness.CERTAIN)),
        ({"event": event(access="w", flags_before=os.O_WRONLY | os.O_APPEND, flags_after=0),
          "who": who(), "inode": inode(0, "append-only")}, (Cause.UNKNOWN, Sureness.GUESS)),
        ({"event": event(access="rw"), "who": who(), "inode": inode(0, "immutable")},
         (Cause.IMMUTABLE, Sureness.CERTAIN)),
        ({"who": who(), "inode": inode(0, "immutable", "append-only")},
         (Cause.NOATIME, Sureness.CERTAIN)),
        ({"event": event(access="w"), "who": who(), "inode": inode(0, "immutable"),
          "is_folder": True}, (Cause.IMMUTABLE, Sureness.CERTAIN)),
        ({"event": event(access="w"), "who": who(), "inode": inode(0, "fs-verity")},
         (Cause.VERITY, Sureness.CERTAIN)),
        ({"event": event(syscall="open_by_handle_at", path=None), "who": who()},
         (Cause.CAPABILITY, Sureness.CERTAIN)),
        ({"who": who(), "inode": inode(NOBODY), "began": True,
          "mount": Mount("fuse.sshfs", "/mnt", False)}, (Cause.SERVER, Sureness.CERTAIN)),
        ({"who": who(label="libvirt-1 (enforce)"), "inode": inode(NOBODY), "began": True},
         (Cause.SECURITY_MODULE, Sureness.LIKELY)),
        ({"who": who(seccomp=2), "inode": inode(NOBODY)}, (Cause.SECCOMP, Sureness.LIKELY)),
        ({"who": who(), "inode": inode(NOBODY), "began": True}, (Cause.UNKNOWN, Sureness.GUESS)),
    ],
)  # fmt: skip
def test_each_cause(evidence: dict[str, object], expected: tuple[Cause, Sureness]) -> None:
    assert cause(**evidence) == expected


def test_a_fuse_server_is_named() -> None:
    found = explained(
        who=who(), inode=inode(NOBODY), mount=Mount("fuse", "/mnt", False), servers=(7, 11)
    )
    assert found.commands == (
        ("flagshim", "diagnose", "-p", "7"), ("flagshim", "diagnose", "-p", "11"),
    )  # fmt: skip


def account(collection: Collection, **failed: int) -> str:
    scope = Scope("PID 42", 2.0, 1000, Counter(failed), ("opens by io_uring",))
    return text_of(collection, scope)


def test_a_storm_is_called_one() -> None:
    collection = Collection(Look.NOTHING)
    for at in range(STORM_PER_SECOND):
        collection.take(event(time_ns=10**9 + at, resolved=f"/file{at % 3}", owner_uid=0, fsuid=1))
    collection.take(event(errno="ENOENT"))
    text = account(collection, EPERM=STORM_PER_SECOND, ENOENT=1)
    assert f"Storm: {STORM_PER_SECOND} EPERM" in text
    assert "3 different files, one up to 8 times" in text
    assert "95.8 % of all failed opens" in text
    assert "Not seen: opens by io_uring." in text


def test_a_few_refusals_are_none() -> None:
    collection = Collection(Look.NOTHING)
    collection.take(event(owner_uid=0, fsuid=1))
    assert "No storm: 1 EPERM" in account(collection, EPERM=1)
    assert "No open was refused with EPERM." in account(Collection(Look.NOTHING))


def test_what_flagshim_spared_counts() -> None:
    collection = Collection(Look.NOTHING)
    spared = event(decision="cleared", reason="owner is not fsuid", errno=None, fd=3, owner_uid=0)
    for _ in range(5):
        collection.take(spared)
    text = account(collection)
    assert "1000 opens, 0 failed, 5 spared by flagshim." in text
    assert "5 EPERM (5 of them spared by flagshim)" in text
    assert "100.0 % of all that failed or were spared" in " ".join(text.split())


def test_names_of_others_are_escaped() -> None:
    collection = Collection(Look.NOTHING)
    collection.take(event(program=b"q\xff\x1b[31m", resolved="/a\nb\x1b]0;x\x07", owner_uid=0))
    text = account(collection, EPERM=1)
    assert "\x1b" not in text
    assert "q\\xff\\x1b[31m" in text
    assert "/a\\nb\\x1b]0;x\\x07" in text


def test_the_like_of_what_was_examined_is_not_examined_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = []

    def look(event: OpenEvent, began: bool | None, look: Look) -> Evidence:
        looks.append(event.resolved)
        return Evidence(event, began)

    monkeypatch.setattr("flagshim.diagnosis.collection.from_event", look)
    monkeypatch.setattr("flagshim.diagnosis.collection._LOOKS_PER_SECOND", 3)
    monkeypatch.setattr("flagshim.diagnosis.collection.time.monotonic", lambda: 1.0)
    collection = Collection()
    for at in range(101):
        collection.take(event(resolved=f"/{at}", owner_uid=0, fsuid=1))
    assert len(looks) == 4
    (group,) = collection.groups()
    assert (group.count, group.assumed) == (101, 97)
    assert "4 were examined, the others are like them" in account(collection, EPERM=101)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT])
def test_a_process_that_ends_while_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: int
) -> None:
    """Then its file is looked at by our own root."""
    file = tmp_path / "file"
    file.touch()
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(evidence, "_who", lambda _: who())
    found = from_event(
        event(tid=ended.pid, path=str(file), resolved=str(file), flags_before=flags), True, Look.ALL
    )
    assert found.inode is not None
    assert not found.is_folder
    assert found.mount is not None
    file.unlink()
    found = from_event(
        event(tid=ended.pid, path=str(file), resolved=str(file), flags_before=flags), True, Look.ALL
    )
    assert (found.inode is not None, found.is_folder) == (flags != os.O_RDONLY,) * 2


def test_a_process_that_ends_between_its_file_and_its_mount(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mounts of its namespace have other IDs than ours: then both are looked at by our own root."""
    file = tmp_path / "file"
    file.touch()
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    look = evidence.inode_of

    def inode_of(path: bytes, follow: bool) -> Inode:
        found = look(path, follow)
        if not path.startswith(b"/proc/"):
            return found
        process.communicate()
        return found._replace(mount_id=-1)

    monkeypatch.setattr(evidence, "inode_of", inode_of)
    found = from_event(event(tid=process.pid, path=str(file), resolved=str(file)), True, Look.ALL)
    assert process.returncode == 0, "it was looked at"
    assert found.inode is not None
    assert found.mount is not None


def test_what_the_program_did_next_is_the_best_evidence() -> None:
    collection = Collection(Look.NOTHING)
    refused = event(tid=7, path="name", resolved=None)
    taken = refused._replace(flags_before=0, flags_after=0, errno=None, fd=-1)
    for dirfd in (5, 6, 8):
        collection.take(refused, True, dirfd)
        collection.follow(taken, dirfd)
    assert "certain: the program made each again without the flag" in account(collection, EPERM=3)
    for other in (taken._replace(path="x"), taken._replace(errno="EPERM"), taken._replace(tid=8)):
        collection.take(refused, True, 5)
        collection.follow(other, 5)
    (group,) = collection.groups()
    assert (group.count, group.retried) == (6, 3)
