"""Places of system tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.system.user_site import Site


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
