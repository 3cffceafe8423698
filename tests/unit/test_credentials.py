import os
import threading

import pytest

from flagshim.credentials import Credentials, mount_namespace_of, read_credentials


def test_of_this_thread() -> None:
    tid = threading.get_native_id()
    credentials = read_credentials(tid, mount_namespace_of("self"))
    assert credentials.pid == os.getpid()
    assert credentials.fsuid == os.geteuid()
    assert credentials.shares_view
    assert not read_credentials(tid, "mnt:[0]").shares_view


def test_of_a_thread_that_is_gone() -> None:
    with pytest.raises(OSError, match="No such"):
        read_credentials(2**22 + 1, "")


@pytest.mark.parametrize(
    ("fsuid", "fowner", "owner", "refused"),
    [
        (1000, False, 0, True),
        (1000, False, 1000, False),
        (1000, True, 0, False),
        (0, False, 1, True),
    ],
)
def test_prediction(fsuid: int, fowner: bool, owner: int, refused: bool) -> None:
    assert Credentials(1, fsuid, fowner, b"/", True).would_be_refused(owner) is refused
