"""How prefixes and flows are written, and how files of them are read."""

import os
from pathlib import Path

import pytest

from eastwest.errors import RefusedError
from eastwest.labels.suspect import flow_text, matched_prefix, parse, prefix_key, prefix_text
from eastwest.probe import suspectfiles
from eastwest.probe.suspectfiles import SuspectFiles


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00:0::1/64", "fd00::/64"),
        ("::/0", "::/0"),
        ("::ffff:10.0.0.1/128", "10.0.0.1/32"),
        ("tcp 10.0.0.2:80 10.0.0.1:1234", "tcp 10.0.0.1:1234 10.0.0.2:80"),
        ("UDP [fd00::2]:53  [fd00::1]:4000", "udp [fd00::1]:4000 [fd00::2]:53"),
        ("sctp 10.0.0.1:0 10.0.0.1:65535", "sctp 10.0.0.1:0 10.0.0.1:65535"),
    ],
)
def test_there_is_one_way_to_write_each(written: str, text: str) -> None:
    """Host bits are left out, a flow is the same in either direction; what is written is read the same."""
    target = parse(written)
    assert target.text == text
    assert parse(text) == target
    back = prefix_text if target.kind == "prefix" else flow_text
    assert {back(key) for key in target.keys} == {text}


NEITHER = [
    "", "10.0.0", "10.0.0.1/33", "10.0.0.1/-1", "10.0.0.1/", "10.0.0.1/٣", "fd00::/129", "fe80::1%eth0/64",
    "10.0.0.1 10.0.0.2", "gre 10.0.0.1:1 10.0.0.2:2", "tcp 10.0.0.1:1 fd00::1", "tcp fd00::1:1 fd00::2:2",
    "tcp 10.0.0.1:65536 10.0.0.2:1", "tcp 10.0.0.1:1 [fd00::1]:1", "x" * 10_000, "010.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("written", NEITHER)
def test_what_is_neither_is_refused_with_how_to_write_it(written: str) -> None:
    with pytest.raises(RefusedError, match="write a prefix like") as refusal:
        parse(written)
    assert len(str(refusal.value)) < 500


def test_the_matching_prefix_of_an_address() -> None:
    """As the kernel tells it: the mapped address, and the length of the entry."""
    address = prefix_key("10.1.2.3")[4:]
    assert matched_prefix(address, 104) == "10.0.0.0/8"


def test_a_file_is_read_to_its_end_whatever_is_in_it() -> None:
    """Comments, blanks, flows and bytes that are no text; the first bad line is named, all are counted."""
    data = (
        b"# a feed\n10.0.0.0/8 # why\n\n  fd00::1\r\ntcp 10.0.0.1:1\t10.0.0.2:2\n\xff\x1b[2J\n10.0.0.0/9x\n"
    )
    content = suspectfiles.parse(data)
    assert [prefix_text(key) for key in content.prefixes] == ["10.0.0.0/8", "fd00::1/128"]
    assert {flow_text(key) for key in content.flows} == {"tcp 10.0.0.1:1 10.0.0.2:2"}
    assert content.problem is not None and content.problem.startswith("line 6 is left out: ")
    assert content.problem.endswith("and 1 more lines; correct it") and content.problem.isprintable()


def test_a_file_is_read_when_it_changed_and_kept_when_it_is_gone(tmp_path: Path) -> None:
    """Also by the next one, from a copy; what is no file is a problem and nothing else."""
    feed = tmp_path / "feed"
    feed.write_text("10.0.0.0/8\n")
    files = SuspectFiles((feed, tmp_path), tmp_path)
    assert files.look()
    assert not files.look()
    assert [len(c.prefixes) for c in files.contents.values()] == [1]
    assert "is no regular file" in files.problems[0]
    feed.unlink()
    assert not files.look()
    assert len(files.contents[feed].prefixes) == 1
    again = SuspectFiles((feed,), tmp_path)
    assert again.look()
    assert again.contents[feed].prefixes == files.contents[feed].prefixes
    assert "what was read before stays; put the file back" in again.problems[0]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """However often it is looked at; what it said before stays, and one that fits is read again."""
    feed = tmp_path / "feed"
    feed.write_text("10.0.0.0/8\n")
    files = SuspectFiles((feed,), tmp_path)
    assert files.look()
    with feed.open("ab") as file:
        file.truncate((16 << 20) + 1)
    before = _bytes_read()
    assert [files.look() for _ in range(5)] == [False] * 5
    assert _bytes_read() - before < 1 << 20
    assert "larger than 16 MiB, what was read before stays; split it" in files.problems[0]
    assert [prefix_text(key) for key in files.contents[feed].prefixes] == ["10.0.0.0/8"]
    feed.write_text("11.0.0.0/8\n" + "#" * ((16 << 20) - 11))
    assert files.look()
    assert [prefix_text(key) for key in files.contents[feed].prefixes] == ["11.0.0.0/8"]
    assert files.problems == []


def _bytes_read() -> int:
    """What this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_file_from_before_the_epoch_was_written_at_no_time(tmp_path: Path) -> None:
    """A time that nobody who reads the answer would take."""
    feed = tmp_path / "feed"
    feed.write_text("10.0.0.0/8\n")
    os.utime(feed, (-5, -5))
    files = SuspectFiles((feed,), tmp_path)
    files.look()
    assert files.contents[feed].written == 0
