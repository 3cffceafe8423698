"""From evidence to a cause: the checks that the kernel makes, in its own order.

seccomp refuses before a call begins. Then fs/namei.c: inode_permission() refuses to write what is
immutable; may_open() refuses append-only files, then O_NOATIME. Security modules and the
filesystem itself are asked last (security_file_open(), f_op->open).
"""

import os
import pwd
from enum import StrEnum
from typing import NamedTuple

from flagshim.diagnosis.evidence import Evidence, Who
from flagshim.openflags import bits_of
from flagshim.rules import MACHINE
from flagshim.trace.events import Decision, Reason

_SERVED = ("fuse", "9p", "nfs", "cifs", "smb3", "ceph", "virtiofs", "afs", "glusterfs")
"""Filesystems whose answers come from somebody else; a part after a dot says from whom."""
_LONGEST = 500
"""Characters of a command that is to be typed; a longer one is cut short."""


class Cause(StrEnum):
    """Why the kernel said EPERM."""

    NOATIME = "O_NOATIME"
    APPEND_ONLY = "append-only file"
    IMMUTABLE = "immutable file"
    VERITY = "fs-verity file"
    CAPABILITY = "capability"
    SECCOMP = "seccomp"
    SECURITY_MODULE = "security module"
    SERVER = "filesystem server"
    UNKNOWN = "unknown"


class Sureness(StrEnum):
    """How sure that is."""

    CERTAIN = "certain"
    LIKELY = "likely"
    GUESS = "a guess"


class Explanation(NamedTuple):
    """The cause of one EPERM. Those that are equal in all but `commands` belong together."""

    cause: Cause
    title: str
    """The cause, with whom and what it is about."""
    sureness: Sureness
    why: str
    """What it is concluded from."""
    commands: tuple[tuple[str, ...], ...]
    """What would help, as commands to type."""
    advice: str
    """What would help and is no command; empty if nothing."""


def explain(evidence: Evidence) -> Explanation:
    """Name the cause of an EPERM, or of one that flagshim spared the program."""
    for check in (_answered, _seccomp, _capability, _inode_flags, _noatime, _server, _module):
        found = check(evidence)
        if found is not None:
            return found
    return _unknown(evidence)


def _answered(evidence: Evidence) -> Explanation | None:
    """Let the kernel's own answer speak: made again without the flag, the open succeeded."""
    event = evidence.event
    if event.decision != Decision.CLEARED or event.reason == Reason.ALWAYS:
        return None
    if event.reason == Reason.REFUSED and event.errno is not None:
        return None
    why = (
        "the kernel took the same open without the flag"
        if event.reason == Reason.REFUSED
        else "the owner is not fsuid, and the thread had no CAP_FOWNER"
    )
    return _noatime_explained(evidence, Sureness.CERTAIN, why)


def _seccomp(evidence: Evidence) -> Explanation | None:
    if evidence.began is not False or (evidence.who is not None and not evidence.who.seccomp):
        return None
    why = "the call was refused before the kernel began it"
    return _seccomp_explained(evidence, Sureness.CERTAIN, why)


def _seccomp_explained(evidence: Evidence, sureness: Sureness, why: str) -> Explanation:
    event, who = evidence.event, evidence.who
    commands = [("systemctl", "edit", who.unit)] if who and who.unit.endswith(".service") else []
    return Explanation(
        Cause.SECCOMP,
        f"a seccomp filter answers {event.syscall} with EPERM",
        sureness,
        why,
        tuple(commands),
        f"have the filter of {_name(evidence)} allow {event.syscall}: its own sandbox option, "
        "SystemCallFilter= of its unit, or the container's profile (--security-opt seccomp=FILE)",
    )


def _capability(evidence: Evidence) -> Explanation | None:
    event, who = evidence.event, evidence.who
    if event.syscall != "open_by_handle_at" or (who and who.cap_dac_read_search):
        return None
    executable = (f"/proc/{event.pid}/exe",) if who else (_name(evidence),)
    return Explanation(
        Cause.CAPABILITY,
        "open_by_handle_at without CAP_DAC_READ_SEARCH",
        Sureness.CERTAIN if who else Sureness.LIKELY,
        "open_by_handle_at(2) asks for that capability"
        + ("" if who else ", and the process, which is gone, may have lacked it"),
        (("setcap", "cap_dac_read_search+ep", *executable),),
        "or run it as root",
    )


def _inode_flags(evidence: Evidence) -> Explanation | None:
    """Look for what chattr(1) sets: it stands in the way of writing only."""
    event, inode = evidence.event, evidence.inode
    if inode is None:
        return None
    flags = event.flags_before
    writes = event.access in ("w", "rw") or bool(flags & os.O_TRUNC) or evidence.is_folder
    name = _folder(evidence) if evidence.is_folder else _path(evidence)
    what = "folder" if evidence.is_folder else "file"
    sureness = Sureness.CERTAIN if evidence.who else Sureness.LIKELY
    if "immutable" in inode.attributes and writes:
        return Explanation(
            Cause.IMMUTABLE,
            f"writing to an immutable {what}",
            sureness,
            "statx(2) has STATX_ATTR_IMMUTABLE, and the open is for writing",
            (("chattr", "-i", name),),
            "",
        )
    if "append-only" in inode.attributes and not evidence.is_folder:
        refused = (
            not flags & os.O_APPEND
            if event.syscall == "fcntl"
            else (writes and not flags & os.O_APPEND) or flags & os.O_TRUNC
        )
        if refused:
            return Explanation(
                Cause.APPEND_ONLY,
                "writing to an append-only file without O_APPEND",
                sureness,
                "statx(2) has STATX_ATTR_APPEND, and the open may change what is there",
                (("chattr", "-a", name),),
                "or open it with O_APPEND and without O_TRUNC",
            )
    if "fs-verity" in inode.attributes and writes:
        return Explanation(
            Cause.VERITY,
            "writing to a file with fs-verity",
            sureness,
            "statx(2) has STATX_ATTR_VERITY, and such a file cannot change",
            (("cp", name, f"{name}.new"),),
            "write to the copy",
        )
    return None


def _noatime(evidence: Evidence) -> Explanation | None:
    event, who, owner, fsuid = evidence.event, evidence.who, evidence.owner, evidence.fsuid
    if not event.flags_after & bits_of("O_NOATIME", MACHINE):
        return None
    if evidence.mount is not None and evidence.mount.idmapped:
        why = f"the mount {evidence.mount.point} is idmapped: to it the owner is another user"
        return _noatime_explained(evidence, Sureness.LIKELY, why)
    if owner is None:
        return _noatime_explained(
            evidence, Sureness.GUESS, "the flag is there; whose the file is could not be found out"
        )
    if who is not None and who.cap_fowner:
        if who.maps(owner):
            return None
        why = f"CAP_FOWNER is of a user namespace in which uid {owner} is not mapped"
        return _noatime_explained(evidence, Sureness.CERTAIN, why)
    if owner == fsuid:
        return None
    if who is None:
        why = "the owner is not the user it ran as; the process is gone, and with it its fsuid"
        return _noatime_explained(evidence, Sureness.LIKELY, why)
    why = "the owner is not fsuid, and the thread has no CAP_FOWNER"
    return _noatime_explained(evidence, Sureness.CERTAIN, why)


def _noatime_explained(evidence: Evidence, sureness: Sureness, why: str) -> Explanation:
    who, owner, fsuid = evidence.who, evidence.owner, evidence.fsuid
    commands: list[tuple[str, ...]] = []
    run = ("flagshim", "run", *_as_user(fsuid), "--")
    if who is not None:
        commands.append(("flagshim", "attach", str(evidence.event.pid)))
        commands.append((*run, *_short(who)))
    else:
        commands.append((*run, _name(evidence), "…"))
    whose = "a user that could not be found out" if owner is None else f"uid {owner}"
    by = "another" if fsuid is None else str(fsuid)
    return Explanation(
        Cause.NOATIME,
        f"O_NOATIME on files owned by {whose} by fsuid {by}",
        sureness,
        why,
        tuple(commands),
        "",
    )


def _as_user(uid: int | None) -> tuple[str, ...]:
    """Return the option by which root has a program be an ordinary user's."""
    if not uid or os.geteuid() != 0:
        return ()
    try:
        return "-u", pwd.getpwuid(uid).pw_name
    except KeyError:
        return "-u", str(uid)


def _server(evidence: Evidence) -> Explanation | None:
    event, mount, who = evidence.event, evidence.mount, evidence.who
    if mount is None or mount.kind.partition(".")[0] not in _SERVED:
        return None
    is_fuse = mount.kind.partition(".")[0] == "fuse"
    excluded = evidence.began is True and who is not None and not who.label
    return Explanation(
        Cause.SERVER,
        f"the {'FUSE server' if is_fuse else 'server'} of {mount.point} ({mount.kind}) "
        f"answered {event.syscall} with EPERM",
        Sureness.CERTAIN if excluded else Sureness.LIKELY,
        "none of the kernel's own checks refuses this open, and the filesystem asks a server",
        tuple(("flagshim", "diagnose", "-p", str(pid)) for pid in evidence.servers),
        ""
        if evidence.servers
        else "see why the server refuses it: flagshim diagnose -p PID, with the server's PID",
    )


def _module(evidence: Evidence) -> Explanation | None:
    who = evidence.who
    if who is not None and who.label:
        return Explanation(
            Cause.SECURITY_MODULE,
            f"a security module that has {_name(evidence)} confined as {who.label!r}",
            Sureness.LIKELY,
            "nothing else that refuses was found, and the process is confined",
            (("ausearch", "-m", "avc,apparmor", "-ts", "recent"), ("dmesg",)),
            "have the policy allow it",
        )
    if who is not None and who.seccomp and evidence.began is None:
        why = "nothing else that refuses was found, and the process has a seccomp filter"
        return _seccomp_explained(evidence, Sureness.LIKELY, why)
    return None


def _unknown(evidence: Evidence) -> Explanation:
    event = evidence.event
    missing = [
        what
        for what, lacking in (
            ("who the process was", evidence.who is None),
            ("what file it is", evidence.inode is None),
        )
        if lacking
    ]
    why = "nothing that refuses was found"
    if missing:
        why += f"; not to be seen any more: {' and '.join(missing)}"
    pid = ("-p", str(event.pid)) if evidence.who else ("--", _name(evidence), "…")
    return Explanation(
        Cause.UNKNOWN,
        f"{event.syscall} refused for a reason that was not found",
        Sureness.GUESS,
        why,
        (("strace", "-f", "-y", "-e", f"trace={event.syscall}", "-e", "status=failed", *pid),),
        "fanotify listeners and BPF security programs refuse without a trace",
    )


def _path(evidence: Evidence) -> str:
    event = evidence.event
    name = event.resolved if event.resolved is not None else event.path
    return "?" if name is None else os.fsdecode(name)


def _folder(evidence: Evidence) -> str:
    return os.path.dirname(_path(evidence))


def _name(evidence: Evidence) -> str:
    return os.fsdecode(evidence.event.program)


def _short(who: Who) -> tuple[str, ...]:
    """Return a program's command, cut short where it is too long to be read."""
    words: list[str] = []
    for word in who.command:
        if sum(map(len, words)) + len(word) > _LONGEST:
            return (*words, "…")
        words.append(word)
    return tuple(words)
