"""What the kernel refuses is an OSError, and never what it said of another file before."""

import os
from pathlib import Path

import pytest

from flagshim.linux.files import AT_FDCWD, owner, owner_if_cached


def test_owner(tmp_path: Path) -> None:
    assert owner(os.fsencode(tmp_path)) == os.getuid()
    with pytest.raises(FileNotFoundError):
        owner(os.fsencode(tmp_path / "absent"))


def test_owner_if_cached(tmp_path: Path) -> None:
    assert owner_if_cached(AT_FDCWD, os.fsencode(tmp_path), follow=True) == os.getuid()
    assert owner_if_cached(AT_FDCWD, os.fsencode(tmp_path / "absent"), follow=True) is None
