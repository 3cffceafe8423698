"""Filesystems: which may make one wait, and which must not be opened for somebody else."""

from flagshim.engines.notify.leaving import Leave, MayWait
from flagshim.linux.files import FileFacts, filesystem_type
from flagshim.trace.events import Reason

_PSEUDO = frozenset(
    {
        "proc": 0x9FA0, "sysfs": 0x62656572, "cgroup": 0x27E0EB, "cgroup2": 0x63677270,
        "debugfs": 0x64626720, "tracefs": 0x74726163, "securityfs": 0x73636673, "bpf": 0xCAFE4A11,
        "configfs": 0x62656570, "nsfs": 0x6E736673, "pidfs": 0x50494446, "selinuxfs": 0xF97CFF8C,
        "smackfs": 0x43415D53, "apparmorfs": 0x5A3C69F0, "efivarfs": 0xDE5E81E4, "autofs": 0x187,
        "pstore": 0x6165676C, "binfmt_misc": 0x42494E4D, "mqueue": 0x19800202,
        "binderfs": 0x6C6F6F70, "resctrl": 0x7655821, "anonymous inodes": 0x09041934,
        "fusectl": 0x65735543, "nfsd": 0x6E667364, "rpc_pipefs": 0x67596969,
        "functionfs": 0x0A647361, "xenfs": 0xABBA1974, "cpuset": 0x027E0EB0,
    }.values()
)  # fmt: skip
"""Filesystems (include/uapi/linux/magic.h) where it depends on who opened a file what it holds,
or who may use it later."""
_WITH_KEYS = frozenset(
    {
        "AFS": 0x5346414F, "AFS of the kernel": 0x6B414653, "CIFS": 0xFF534D42, "SMB2": 0xFE534D42,
        "eCryptfs": 0xF15F,
    }.values()
)  # fmt: skip
"""Filesystems that ask for the keys of whoever opens a file (keyrings(7)); /proc does not tell
which those are."""
_LOCAL = frozenset(
    {
        "ext2 to ext4": 0xEF53, "XFS": 0x58465342, "Btrfs": 0x9123683E, "F2FS": 0xF2F52010,
        "bcachefs": 0xCA451A4E, "ZFS": 0x2FC12FC1, "tmpfs": 0x01021994, "ramfs": 0x858458F6,
        "SquashFS": 0x73717368, "EROFS": 0xE0F5E1E2,
    }.values()
)  # fmt: skip
"""Filesystems that never wait for a process or another machine."""


class Filesystems:
    """Looks at what files are on, and remembers mounts that never make one wait."""

    def __init__(self) -> None:
        self.local_mounts: set[int] = set()
        """Where nothing ever makes one wait."""

    def check(self, file: int, facts: FileFacts, patient: bool) -> None:
        """Refuse what must not, or must not yet, be opened.

        Args:
            file: a descriptor of it.
            facts: of it.
            patient: whether its filesystem may be asked, which may make one wait.

        Raises:
            Leave: it depends on who opens it what it is.
            MayWait: only if not patient: nobody has looked at its filesystem yet, or has and it is
                one that may make one wait.
        """
        if not patient:
            if facts.mount not in self.local_mounts:
                raise MayWait
            return
        type_ = filesystem_type(file)
        if type_ in _PSEUDO:
            raise Leave(Reason.NOT_RESCUED_PROC)
        if type_ in _WITH_KEYS:
            raise Leave(Reason.NOT_RESCUED_USER)
        if type_ in _LOCAL and facts.mount is not None:
            self.local_mounts.add(facts.mount)
