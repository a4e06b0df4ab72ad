"""Places of system tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import quiet, require
from tests.system.guest import Image, build
from tests.system.podman_site import PodmanSite
from tests.system.user_site import Site


@pytest.fixture(scope="session")
def image(root: None, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What a QEMU guest boots from."""
    return build(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def site(tmp_path: Path, netns: Path, cgroup: Path) -> Iterator[Site]:
    """A place to run eastwest in; nothing of it is left in the kernel."""
    require(shutil.which("setpriv"), "needs setpriv: apt-get install util-linux")
    pytest.importorskip("chdb", reason="pip install 'eastwest[server]'")
    site = Site(tmp_path, netns, cgroup)
    try:
        yield site
    finally:
        site.run("down", "--state-dir", str(site.state))


@pytest.fixture
def podman(netns: Path, cgroup: Path) -> Iterator[PodmanSite]:
    """A podman of the test's own, whose host is `netns` and `cgroup`."""
    quiet(netns, "default")
    # Not below tmp_path: podman takes no directory for its state whose path has more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        site = PodmanSite(Path(directory), netns, cgroup)
        try:
            yield site
        finally:
            site.close()
