"""Files of packets: whole by themselves, mended where a crash cut them, within their limits."""

import os
import resource
import time
from pathlib import Path

import pytest

from eastwest.collector import files as files_module
from eastwest.collector.files import Files, mend
from eastwest.collector.streamconfig import StreamsConfig
from eastwest.errors import ConfigError
from tests.pcapng import interface, packet, section

HEAD = section() + interface("a") + interface("b")
DAY = 86400.0


def files(path: Path, **settings: float) -> Files:
    made = Files(StreamsConfig(**{"path": path, "min_free_bytes": 0} | settings))  # type: ignore[arg-type]
    made.prepare()
    made.mend()
    return made


def write(into: Files, tap: str = "web", host: str = "h1", blocks: bytes = packet(b"x")) -> Path:
    """One file that is closed."""
    before = set(into.config.path.rglob("*.pcapng"))
    recording = into.recording(tap, host)
    assert recording.write(section(), [interface("a"), interface("b")], memoryview(blocks))
    recording.close()
    (new,) = set(into.config.path.rglob("*.pcapng")) - before
    return new


@pytest.mark.parametrize(
    "rest", [b"", packet(b"not this one")[:-4], b"\0" * 4096, b"\xff" * 7, section()[:20]]
)
def test_mended(tmp_path: Path, rest: bytes) -> None:
    """Cut behind the last whole block, whatever follows it."""
    whole = HEAD + b"".join(packet(bytes([n]) * 1000, n % 2) for n in range(250)) * 20
    path = tmp_path / "x.pcapng"
    path.write_bytes(whole + rest)
    mend(path)
    assert path.read_bytes() == whole


def test_mended_at_any_place(tmp_path: Path) -> None:
    """Wherever the crash cut it, what is whole stays; without a packet nothing does."""
    blocks = [section(), interface("a"), packet(b"12345"), interface("b"), packet(b"1", 1), packet(b"")]
    ends = [sum(map(len, blocks[: n + 1])) for n in range(len(blocks))]
    path = tmp_path / "x.pcapng"
    for cut in range(ends[-1] + 1):
        path.write_bytes(b"".join(blocks)[:cut])
        mend(path)
        whole = max((end for end in ends if end <= cut), default=0)
        if whole < ends[2]:
            assert not path.exists()
        else:
            assert path.read_bytes() == b"".join(blocks)[:whole]


def test_only_what_was_being_written_is_mended(tmp_path: Path) -> None:
    """A file that was closed is nobody's business, however it looks."""
    before = files(tmp_path)
    closed = write(before)
    closed.write_bytes(b"somebody's own")
    left = before.recording("web", "h2")
    assert left.write(section(), [interface("a")], memoryview(packet(b"1")))
    (cut,) = (tmp_path / "web").glob("h2-*")
    whole = cut.read_bytes()
    cut.write_bytes(whole + b"\6\0\0\0")
    files(tmp_path)
    assert cut.read_bytes() == whole
    assert closed.read_bytes() == b"somebody's own"
    assert list((tmp_path / ".open").iterdir()) == []


def test_a_mark_without_a_file_is_forgotten(tmp_path: Path) -> None:
    """The crash came between the two."""
    (tmp_path / ".open").mkdir()
    (tmp_path / ".open" / "web,h1-20260101T000000.000Z").touch()
    files(tmp_path)
    assert list((tmp_path / ".open").iterdir()) == []


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    """Said at the start, with what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="give \\[streams\\] path a directory"):
        files(tmp_path / "file")


def test_names(tmp_path: Path) -> None:
    """Nothing that a host calls itself leads elsewhere; several files of one second have different names."""
    made = files(tmp_path)
    paths = [write(made, host=host) for host in ("../../etc", "h1", "h1", "ü\n", "a" * 999)]
    assert all(path.parent == tmp_path / "web" for path in paths)
    assert len(set(paths)) == 5


def test_a_write_that_fails_half_way(tmp_path: Path) -> None:
    """Leaves the file as it was before, whole, and says why; a first one leaves no file."""
    made = files(tmp_path)
    recording, late = made.recording("web", "h1"), made.recording("web", "h2")
    big = memoryview(packet(bytes(100_000)) * 6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        assert recording.write(section(), [interface()], big)
        assert not recording.write(section(), [interface(), interface("b")], big)
        assert "File too large" in made.problem
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, before[1]))
        assert not late.write(section(), [interface()], big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (path,) = (tmp_path / "web").iterdir()
    assert path.read_bytes() == section() + interface() + bytes(big)
    small = packet(b"1", 1)
    assert recording.write(section(), [interface(), interface("b")], memoryview(small))
    assert path.read_bytes() == section() + interface() + bytes(big) + interface("b") + small
    assert made.problem == ""


def test_limits_take_the_oldest_first(tmp_path: Path) -> None:
    """By age, then by size; an empty directory goes with its last file."""
    made = files(tmp_path, retention_bytes=3 << 20, retention_days=2)
    big = packet(bytes(100_000)) * 9
    old = write(made, tap="old", blocks=big)
    paths = [write(made, host=f"h{n}", blocks=big) for n in range(5)]
    now = time.time()
    os.utime(old, (now - 3 * DAY, now - 3 * DAY))
    for n, path in enumerate(paths):
        os.utime(path, (now - 1000 + n, now - 1000 + n))
    made.keep_limits()
    assert sorted(tmp_path.rglob("*.pcapng")) == paths[2:]
    assert not old.parent.exists()
    assert made.removed == 3


def test_not_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are."""
    monkeypatch.setattr(files_module, "MOST_FILES", 3)
    made = files(tmp_path)
    paths = [write(made, host=f"h{n}") for n in range(5)]
    for n, path in enumerate(paths):
        os.utime(path, (n, time.time() - 1000 + n))
    made.keep_limits()
    assert sorted(tmp_path.rglob("*.pcapng")) == paths[2:]


def test_limits_leave_what_is_being_written(tmp_path: Path) -> None:
    """But it is closed with the next packets, and can go then."""
    made = files(tmp_path, retention_bytes=1 << 20)
    recording = made.recording("web", "h1")
    big = memoryview(packet(bytes(100_000)) * 6)
    assert recording.write(section(), [interface()], big)
    write(made, host="h2", blocks=bytes(big))
    made.keep_limits()
    assert [path.name[:2] for path in tmp_path.rglob("*.pcapng")] == ["h1"]
    assert recording.write(section(), [interface()], big)
    made.keep_limits()
    assert len(list(tmp_path.rglob("*.pcapng"))) == 1
    recording.close()
