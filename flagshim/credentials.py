"""Who a thread is to the kernel, and whether it would be refused O_NOATIME.

A prediction saves two stops for a refused open, no more: where it says nothing the
kernel is asked, and a refusal it did not foresee is answered all the same. may_open()
in fs/namei.c lets O_NOATIME pass if inode_owner_or_capable(): the owner as the mount
shows it is the thread's fsuid, or the thread has CAP_FOWNER in a user namespace that the
owner is mapped in.
"""

import os
from typing import NamedTuple

from flagshim.tracee import read_status, root_of

CAP_FOWNER = 3


class Credentials(NamedTuple):
    """What may_open() asks of a thread, credentials(7) and capabilities(7)."""

    pid: int
    """Thread group ID."""
    fsuid: int | None
    """None where it could not be looked up."""
    cap_fowner: bool
    """Whether CAP_FOWNER is effective, in whatever user namespace the thread is in."""
    root: bytes
    """Root directory as /proc shows it: "/" too in another mount namespace, or where hidden."""
    shares_view: bool
    """Whether an absolute path means to the thread what it means to the supervisor."""

    def would_be_refused(self, owner: int) -> bool:
        """Tell whether O_NOATIME on a file of `owner` is sure to be EPERM for this thread.

        False says nothing. With CAP_FOWNER it depends on the user namespace, and IDs that
        are not mapped here all look like the overflow uid, so equal IDs prove nothing.
        """
        return not self.cap_fowner and self.fsuid is not None and owner != self.fsuid


def read_credentials(tid: int, mount_namespace: str) -> Credentials:
    """Read /proc/TID/status (proc(5)) of one thread: credentials are not the process's.

    Args:
        tid: a thread, by its own ID: /proc/PID of a zombie leader has no root.
        mount_namespace: what `mount_namespace_of` says of the supervisor itself.

    Raises:
        OSError: the thread is gone.
    """
    status = read_status(tid)
    uids = _field(status, b"\nUid:").split()
    root = root_of(tid)
    return Credentials(
        pid=int(_field(status, b"\nTgid:")),
        fsuid=int(uids[3]),
        cap_fowner=bool(int(_field(status, b"\nCapEff:"), 16) >> CAP_FOWNER & 1),
        root=root,
        shares_view=root == b"/" and _same_mounts(tid, mount_namespace),
    )


def mount_namespace_of(tid: int | str) -> str:
    """Return an identifier of a thread's mount namespace, namespaces(7)."""
    return os.readlink(f"/proc/{tid}/ns/mnt")


def _same_mounts(tid: int, mount_namespace: str) -> bool:
    try:
        return mount_namespace_of(tid) == mount_namespace
    except OSError:  # a thread we may trace, but not look into (non-dumpable)
        return False


def has_capabilities(*numbers: int) -> bool:
    """Tell whether capabilities(7) are effective for this process, all of them."""
    with open("/proc/self/status", "rb") as file:
        effective = int(_field(file.read(), b"\nCapEff:"), 16)
    return all(effective >> number & 1 for number in numbers)


def _field(status: bytes, name: bytes) -> bytes:
    start = status.index(name) + len(name)
    return status[start : status.index(b"\n", start)]
