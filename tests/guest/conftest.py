"""What the guest tests share: one image, one folder, and a reason where there can be none."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flagshim.errors import FlagshimError
from flagshim.probes import reason_notify_unavailable
from tests.support import require

from .image import Image, image
from .kernel import VARIABLE
from .refusals import Asked, count_asked
from .requirements import obstacle
from .share import share


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "unpatched: needs the QEMU without its O_NOATIME fallback (make qemu-unpatched)"
    )


@pytest.fixture(scope="session")
def guest_image() -> Image:
    """Kernel and initramfs; the first test that asks for them pays for the download."""
    require("guest", obstacle())
    try:
        return image()
    except FlagshimError as error:
        require("guest", str(error))
        raise


@pytest.fixture(scope="session")
def asked_by(guest_image: Image) -> Callable[[Path], Asked]:
    """Count the calls with O_NOATIME in strace's log, or skip where the guest makes none."""

    def count(log: Path) -> Asked:
        asked = count_asked(log)
        if not asked.all:
            reason = f"Linux {guest_image.release} hands no O_NOATIME on to 9p; see kernel.py"
            if not os.environ.get(VARIABLE):
                pytest.fail(reason)
            pytest.skip(reason)
        return asked

    return count


@pytest.fixture(scope="module", params=["ptrace", "notify"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine that can start programs everywhere, as --engine has it."""
    if request.param == "notify":
        require("notify", reason_notify_unavailable())
    return str(request.param)


@pytest.fixture(scope="session")
def guest_share(guest_image: Image) -> Iterator[Path]:
    """A folder of root's files; guests mount it read-only, so all of them use the same."""
    with share() as folder:
        yield folder
