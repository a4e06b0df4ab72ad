"""What the kernel taps by itself, below a tapped cgroup, follows it until it is known whose it is."""

from pathlib import Path

import numpy as np
import pytest

from eastwest.errors import KernelError
from eastwest.kernel.libbpf import Object
from eastwest.kernel.records import INHERIT_OBJECT, TAP_OBJECT, record
from eastwest.tap.heirs import Heirs, named_apart
from eastwest.tap.points import Points, Source, Stream, Taking
from eastwest.tap.reading import Hook
from tests.conftest import require
from tests.kernel.tapping import tapping


def _attaches() -> bool:
    made = Object(INHERIT_OBJECT)
    try:
        made.load()
        made.attach("inherit")
    except KernelError:
        return False
    finally:
        made.close()
    return True


def test_heirs_follow_their_origin(netns: Path, cgroup: Path) -> None:
    """They change with it, go with it, and go once they are known; what may be a workload is none."""
    require(_attaches(), "needs tracing of cgroup_mkdir (BTF): a newer kernel")
    web = cgroup / "web.slice"
    web.mkdir()
    source, stream = Source(Hook.CGROUP, web.stat().st_ino), Stream("tap", 7, "")
    with tapping(netns) as taps:
        points, heirs = Points(taps, cgroup, {}), Heirs(taps.map("cgroup_points"))

        def found() -> dict[int, tuple[int, int]]:
            """id → origin, and snaplen of the first order."""
            return {number: (origin, _snaplen(point)) for number, origin, point in heirs.found()}

        def wanted(snaplen: int) -> dict[Source, list[Taking]]:
            return {source: [Taking(stream, 0, 0, 0, snaplen)]}

        points.apply(wanted(100), {})
        made = [web / name for name in ("a", "a/b", "x.scope", "0" * 64)]
        for path in made:
            path.mkdir()
        a, b = (path.stat().st_ino for path in made[:2])
        assert found() == {a: (source.number, 100), b: (source.number, 100)}
        points.apply(wanted(200), {})
        assert found() == {a: (source.number, 200), b: (source.number, 200)}
        points.apply(wanted(200), {}, {a})
        assert found() == {b: (source.number, 200)}
        points.apply(wanted(200) | {Source(Hook.CGROUP, b): [Taking(stream, 0, 0, 0, 300)]}, {}, {a, b})
        assert found() == {}
        (web / "late").mkdir()
        assert len(found()) == 1
        points.apply({}, {})
        assert found() == {}
        (web / "later").mkdir()
        assert found() == {}
        points.close()


def _snaplen(point: bytes) -> int:
    return int(np.frombuffer(point, record("tap_point", TAP_OBJECT))[0]["order"][0]["snaplen"])


@pytest.mark.parametrize(
    ("patterns", "apart"),
    [(("*.slice", "*.scope"), True), (("*",), False), (("*.service", "vm-*"), False), (("[.a]*",), False)],
)
def test_names_that_tell(patterns: tuple[str, ...], apart: bool) -> None:
    """Only where every workload's name has a dot is one without it no workload."""
    assert named_apart(patterns) == apart
