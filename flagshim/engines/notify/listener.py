"""The listener of a seccomp filter: calls that wait for an answer, and the answers.

Structures and requests of include/uapi/linux/seccomp.h.
"""

import errno
import fcntl
import struct
from typing import NamedTuple

from flagshim.linux.filters import device_control
from flagshim.linux.tuples import new_tuple

NOTIFICATION_SIZE = 80
"""Of struct seccomp_notif, in bytes."""

_RECV = 0xC0502100
_SEND = 0xC0182101
_ID_VALID = 0x40082102
_ADDFD = 0x40182103
_SET_FLAGS = 0x40082104
_USER_NOTIF_FD_SYNC_WAKE_UP = 1
_USER_NOTIF_FLAG_CONTINUE = 1

# struct seccomp_notif: id, pid, flags, then struct seccomp_data: nr, arch, ip, args[6].
_notification = struct.Struct("=QIIIIQ6Q")
_response = struct.Struct("=QqiI")  # id, val, error, flags
_addfd = struct.Struct("=QIIII")  # id, flags, srcfd, newfd, newfd_flags
_id = struct.Struct("=Q")


class Notification(NamedTuple):
    """A call that waits for an answer."""

    id: int
    tid: int
    """As our PID namespace numbers it; 0 for a thread that is not in it."""
    number: int
    audit_arch: int
    instruction: int
    arguments: tuple[int, ...]


def notification_in(memory: bytes | memoryview) -> Notification:
    """Read struct seccomp_notif."""
    words = _notification.unpack(memory)
    values = (words[0], words[1], words[3], words[4], words[5], words[6:])
    return new_tuple(Notification, values)


class Gone(Exception):
    """The call waits no more: its thread was killed, or somebody else has answered."""


class Listener:
    """Answers calls. Not to be used by two threads at a time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def share_a_cpu(self) -> bool:
        """Have threads and us wake each other on the CPU we are on: no idle one is to be woken.

        Returns:
            Whether the kernel can (commit 48a1084a8b74, Linux 6.6).
        """
        try:
            fcntl.ioctl(self.fd, _SET_FLAGS, _USER_NOTIF_FD_SYNC_WAKE_UP)
        except OSError:
            return False
        return True

    def receive(self, address: int) -> bool:
        """Have the kernel put the next call at an address, where all must be zero.

        Returns:
            Whether there was one.
        """
        try:
            device_control(self.fd, _RECV, address)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # killed just now
                return False
            raise
        return True

    def is_waiting(self, id_: int) -> bool:
        """Tell whether a call still waits, which also says that its thread's ID is still its."""
        try:
            fcntl.ioctl(self.fd, _ID_VALID, _id.pack(id_))
        except FileNotFoundError:
            return False
        return True

    def let_go_on(self, id_: int) -> None:
        """Have the kernel make the call as the program asked.

        Raises:
            Gone: see there.
        """
        self.answer(id_, flags=_USER_NOTIF_FLAG_CONTINUE)

    def fail(self, id_: int, number: int) -> None:
        """Have the call fail with an errno.

        Raises:
            Gone: see there.
        """
        self.answer(id_, error=-number)

    def give(self, id_: int, fd: int, flags: int) -> int:
        """Give the thread a duplicate of our descriptor; its call still waits.

        Not with SECCOMP_ADDFD_FLAG_SEND: if whoever asks for that is killed, stopped or frozen
        before the thread has taken the descriptor, the kernel takes that back but not the answer,
        and the call returns 0 (seccomp_notify_addfd() in kernel/seccomp.c, seen on Linux 6.18).

        Args:
            id_: of the call.
            fd: ours.
            flags: O_CLOEXEC or 0, of the thread's descriptor.

        Returns:
            The thread's descriptor.

        Raises:
            Gone: see there.
            OSError: the thread cannot have another (EMFILE); the call still waits.
        """
        request = bytearray(_addfd.pack(id_, 0, fd, 0, flags))  # of bytes, bytes come back
        try:
            return int(fcntl.ioctl(self.fd, _ADDFD, request))
        except FileNotFoundError:
            raise Gone from None

    def answer(self, id_: int, value: int = 0, error: int = 0, flags: int = 0) -> None:
        """Have the call return a value, or what else `let_go_on` and `fail` say.

        Raises:
            Gone: see there.
        """
        try:
            fcntl.ioctl(self.fd, _SEND, _response.pack(id_, value, error, flags))
        except FileNotFoundError:
            raise Gone from None
