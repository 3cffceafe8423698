"""What can be learnt of one refused open: the call, who made it, and on what."""

import os
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from flagshim import tracee
from flagshim.linux.files import Inode, inode_of
from flagshim.trace.events import OpenEvent, Reason

_CAP_DAC_READ_SEARCH, _CAP_FOWNER = 2, 3  # capabilities(7)
_UNCONFINED = ("", "unconfined", "kernel", "unconfined_u:unconfined_r:unconfined_t:s0")
_O_NOFOLLOW, _O_CREAT = os.O_NOFOLLOW, os.O_CREAT


class Who(NamedTuple):
    """A thread, as /proc shows it."""

    fsuid: int
    cap_fowner: bool
    cap_dac_read_search: bool
    uid_map: tuple[tuple[int, int], ...]
    """(first, count) of the IDs of our user namespace that are mapped in the thread's."""
    seccomp: int
    """Mode, 2 for a filter (proc(5))."""
    label: str
    """Of the security module; empty where it is not confined."""
    command: tuple[str, ...]
    unit: str
    """The systemd unit it runs in; empty if in none."""

    def maps(self, uid: int) -> bool:
        """Tell whether a user ID is mapped in the thread's user namespace."""
        return any(first <= uid < first + count for first, count in self.uid_map)


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo."""

    kind: str
    """Filesystem type, as fuse.sshfs."""
    point: str
    idmapped: bool


@dataclass(frozen=True)
class Evidence:
    """All that is known of one refused open; None where nothing is."""

    event: OpenEvent
    began: bool | None = None
    """Whether the kernel began the call; seccomp refuses before that."""
    who: Who | None = None
    """None if the process was gone."""
    inode: Inode | None = None
    """The file; or, where there was none yet, the folder it was to be made in."""
    is_folder: bool = False
    """Whether `inode` is that folder."""
    mount: Mount | None = None
    servers: tuple[int, ...] = ()
    """Processes that may be the server of that mount, if it is FUSE."""

    @property
    def fsuid(self) -> int | None:
        """Who asked; of a process that is gone the real user ID."""
        return self.who.fsuid if self.who else self.event.fsuid

    @property
    def owner(self) -> int | None:
        """Whose the file is."""
        if self.inode is not None and not self.is_folder:
            return self.inode.owner
        return self.event.owner_uid


class Look(Enum):
    """What can be looked at now, besides the event."""

    ALL = auto()
    """It was a moment ago: the process may still be as it was."""
    FILE = auto()
    """It was on this machine: the file may still be as it was."""
    NOTHING = auto()


def from_event(event: OpenEvent, began: bool | None, look: Look) -> Evidence:
    """Gather the evidence, now that the call has returned.

    Args:
        event: the call.
        began: whether the kernel began it, if anybody looked.
        look: what to look at.
    """
    if event.reason == Reason.NOT_BEGUN:
        began = False
    if look is Look.NOTHING:
        return Evidence(event, began)
    who = _who(event.tid) if look is Look.ALL else None
    inode, is_folder, mount = _file(event, alive=who is not None)
    is_fuse = mount is not None and mount.kind.partition(".")[0] == "fuse"
    servers = fuse_servers(inode.device_minor) if inode and is_fuse else ()
    return Evidence(event, began, who, inode, is_folder, mount, servers)


def _who(tid: int) -> Who | None:
    try:
        with open(f"/proc/{tid}/status", errors="surrogateescape") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        with open(f"/proc/{tid}/uid_map") as file:
            mapped = tuple(
                (int(outside), int(count)) for _, outside, count in (line.split() for line in file)
            )
        with open(f"/proc/{tid}/cmdline", "rb") as stream:
            words = stream.read().removesuffix(b"\0").split(b"\0")
    except (OSError, ValueError):
        return None
    if status["State"].startswith(("Z", "X")):
        return None
    capabilities = int(status["CapEff"], 16)
    return Who(
        int(status["Uid"].split()[3]),
        bool(capabilities >> _CAP_FOWNER & 1),
        bool(capabilities >> _CAP_DAC_READ_SEARCH & 1),
        mapped,
        int(status.get("Seccomp", "0")),
        _label(tid),
        tuple(map(os.fsdecode, words)),
        _unit(tid),
    )


def _label(tid: int) -> str:
    try:
        with open(f"/proc/{tid}/attr/current", "rb") as file:
            label = file.read().strip(b"\0\n").decode(errors="backslashreplace")
    except OSError:
        return ""
    return "" if label in _UNCONFINED else label


def _unit(tid: int) -> str:
    try:
        with open(f"/proc/{tid}/cgroup", errors="surrogateescape") as file:
            parts = [line.rstrip("\n").rpartition("/")[2] for line in file]
    except OSError:
        return ""
    return next((part for part in parts if part.endswith((".service", ".scope"))), "")


def _file(event: OpenEvent, alive: bool) -> tuple[Inode | None, bool, Mount | None]:
    """Look at the file and its mount by the thread's own root, or by ours if it is gone.

    Both by the same: the mounts of another namespace have other IDs.
    """
    if event.syscall == "fcntl" and event.resolved is None:
        return None, False, None
    name = event.resolved if event.resolved is not None else event.path
    path = os.fsencode(name) if name is not None else b""
    if not path.startswith(b"/"):
        return None, False, None
    if alive and tracee.root_of(event.tid) == b"/":
        inode, is_folder = _inode_at(event, path, b"/proc/%d/root" % event.tid)
        mount = _mount(event.tid, inode.mount_id) if inode else None
        if mount or not tracee.has_ended(event.tid):
            return inode, is_folder, mount
    inode, is_folder = _inode_at(event, path, b"")
    return inode, is_folder, _mount("self", inode.mount_id) if inode else None


def _inode_at(event: OpenEvent, path: bytes, root: bytes) -> tuple[Inode | None, bool]:
    follow = not event.flags_before & _O_NOFOLLOW
    try:
        return inode_of(root + path, follow), False
    except FileNotFoundError:
        if not event.flags_before & _O_CREAT:
            return None, False
    except OSError:
        return None, False
    try:
        return inode_of(root + os.path.dirname(path), follow=True), True
    except OSError:
        return None, False


def _mount(tid: int | str, mount_id: int) -> Mount | None:
    try:
        with open(f"/proc/{tid}/mountinfo", "rb") as file:
            for line in file:
                fields = line.split()
                if int(fields[0]) == mount_id:
                    kind = fields[fields.index(b"-") + 1]
                    options = fields[5].split(b",")
                    point = os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1"))
                    return Mount(kind.decode(errors="replace"), point, b"idmapped" in options)
    except (OSError, ValueError):
        return None
    return None


def fuse_servers(connection: int) -> tuple[int, ...]:
    """Return the processes that may answer for a FUSE mount.

    Newer kernels tell of an open /dev/fuse which connection it is of (fdinfo, fuse_connection);
    where they do not, any that has it open may be the one.
    """
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for fd in fds:
            if tracee.fd_path(int(pid), int(fd)) == b"/dev/fuse":
                told = _fuse_connection(pid, fd)
                if told in (None, connection):
                    found.append(int(pid))
                    break
    return tuple(found)


def _fuse_connection(pid: str, fd: str) -> int | None:
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            for line in file:
                if line.startswith("fuse_connection:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None
