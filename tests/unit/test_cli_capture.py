"""What `capture` and the tap verbs ask of the API, and what they make of a stream of packets."""

import asyncio
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest import cli
from eastwest.cli import options
from eastwest.cli.capture import seconds, summary
from eastwest.cli.capturing import Counts, Cut, Outcome
from eastwest.cli.output import Output
from eastwest.cli.units import octets, size
from eastwest.errors import RefusedError
from eastwest.kernel.blocks import Malformed
from tests.pcapng import interface, packet, section
from tests.unit.cli_stub import Stub, serving

Capture = pytest.CaptureFixture[str]

WORDS = section() + interface()
NAME = "capture-0a0b0c0d"
_ASKED = ("-f", "udp", "--direction", "ingress", "-c", "10", "-s", "96")


def stream(packets: int) -> bytes:
    return WORDS + b"".join(packet(bytes(60 + i % 5)) for i in range(packets))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with serving() as stub:
        monkeypatch.setenv("EASTWEST_URL", stub.url)
        monkeypatch.setattr(secrets, "token_hex", lambda _: NAME.partition("-")[2])
        yield stub


def tap(**fields: object) -> dict[str, object]:
    """One entry of /taps."""
    host = {"host": "h1", "points": 1, "connected": True, "refused": [], "problem": ""}
    return {
        "name": "web", "selector": "name=web", "filter": "", "direction": "both", "receiver": "collector",
        "to": "127.0.0.1:8471", "store": True, "expires": None, "pcap_over_ip": "",
        "workloads": 1, "matched": 0, "delivered": 0, "lost": {}, "hosts": [host],
    } | fields  # fmt: skip


def account(seen: int, **fields: object) -> dict[str, object]:
    """One entry of /ledger/taps."""
    return {
        "tap": NAME, "seen_packets": seen, "not_matched_packets": 0, "delivered_packets": seen, "lost": {},
        "pending_packets": 0, "unstored_packets": 0, "missed_packets": 0, "balanced": True,
    } | fields  # fmt: skip


@given(st.integers(1, 12), st.integers(0, 14), st.lists(st.integers(1, 900), max_size=6))
def test_a_stream_is_cut_after_so_many_packets_however_it_comes(most: int, there: int, at: list[int]) -> None:
    """Written is the stream's beginning with exactly so many; the rest is counted; not a byte is changed."""
    whole = stream(there)
    cut = Cut(most, None)
    written, packets, beyond = b"", 0, 0
    for start, end in zip([0, *sorted(at)], [*sorted(at), len(whole)], strict=True):
        taken = cut.take(whole[start:end])
        written += taken.data
        packets += taken.packets
        beyond += taken.beyond
    assert (packets, beyond) == (min(most, there), max(0, there - most))
    assert written == stream(min(most, there))
    assert cut.full == (there >= most)


@given(st.integers(1, 2000), st.lists(st.integers(1, 900), max_size=6))
def test_a_stream_is_cut_before_it_is_longer(room: int, at: list[int]) -> None:
    """As many whole blocks as there is room for, and none behind the first that does not fit."""
    whole = stream(10)
    cut = Cut(None, room)
    written, packets, beyond = b"", 0, 0
    for start, end in zip([0, *sorted(at)], [*sorted(at), len(whole)], strict=True):
        taken = cut.take(whole[start:end])
        written += taken.data
        packets += taken.packets
        beyond += taken.beyond
    fitting = [n for n in range(11) if len(stream(n)) <= room]
    assert written == (stream(fitting[-1]) if fitting else WORDS[: len(written)])
    assert len(written) <= room
    assert (packets, beyond) == ((fitting or [0])[-1], 10 - (fitting or [0])[-1])


def test_what_is_no_stream_is_said() -> None:
    cut = Cut(None, None)
    with pytest.raises(Malformed):
        cut.take(b"<html>" * 20)


@pytest.mark.parametrize(
    ("text", "bytes_"), [("500", 500), ("10k", 10_000), ("2MB", 2_000_000), ("1G", 10**9)]
)
def test_sizes(text: str, bytes_: int) -> None:
    assert size(text) == bytes_


@pytest.mark.parametrize("text", ["", "k", "1.5M", "-1", "1 k", "10kk"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(RefusedError):
        size(text)


def test_times() -> None:
    assert [seconds(text) for text in ("90", "90s", "2m")] == [90, 90, 120]


def test_a_file_is_kept_until_it_is_to_be_overwritten(tmp_path: Path) -> None:
    """A refused order leaves what was there; a new file that nothing came to is not left behind."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"x" * 1234)
    with Output(str(old)), Output(str(new)):
        pass
    assert old.read_bytes() == b"x" * 1234
    assert not new.exists()
    with Output(str(old)) as output, Output(str(new)) as fresh:
        assert output.begin() == f"overwriting {old} (1.23 kB)"
        assert fresh.begin() == ""
        asyncio.run(output.write(memoryview(b"packets")))
    assert old.read_bytes() == b"packets"
    assert new.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"cannot write .*: No such file or directory; correct -w"):
        Output(str(tmp_path / "nowhere" / "x")).__enter__()


def test_a_pipe_whose_reader_waits_keeps_nothing_waiting(tmp_path: Path) -> None:
    """It is given more once it has read; where it has gone, that is told before anything is written."""
    os.mkfifo(tmp_path / "fifo")
    size_ = 1 << 20

    async def scenario() -> None:
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        with Output(str(tmp_path / "fifo")) as output:
            writing = asyncio.create_task(output.write(memoryview(bytes(size_))))
            await asyncio.sleep(0)
            assert not writing.done()
            got = 0
            while got < size_:
                try:
                    got += len(os.read(reader, 1 << 16))
                except BlockingIOError:
                    await asyncio.sleep(0)
            await writing
            assert not output.abandoned()
            os.close(reader)
            assert output.abandoned()
            with pytest.raises(BrokenPipeError):
                await output.write(memoryview(b"more"))

    asyncio.run(scenario())


def test_a_capture_of_n_packets(api: Stub, capsys: Capture, tmp_path: Path) -> None:
    """Ordered, read, cut, removed; the summary accounts for every packet; exit 0."""
    api.answers |= {
        "taps": tap(name=NAME), f"taps/{NAME}": tap(name=NAME), f"taps/{NAME}/stream": stream(12),
        "ledger/taps": [account(13, lost={"buffer_full": 1}, not_matched_packets=4)],
    }  # fmt: skip
    file = tmp_path / "x.pcapng"
    assert cli.main(["capture", "name=web", *_ASKED, "-w", str(file)]) == 0
    assert file.read_bytes() == stream(10)
    ((_, _, _, order), *_) = [asked for asked in api.asked if asked[:2] == ("POST", "taps")]
    assert order == {
        "name": NAME, "selector": "name=web", "filter": "udp", "payload": "", "snaplen": 96, "store": False,
        "for": "10s", "segment": False, "direction": "ingress",
    }  # fmt: skip
    assert ("DELETE", f"taps/{NAME}") in [asked[:2] for asked in api.asked]
    told = capsys.readouterr().err.splitlines()
    assert told[-3].startswith("eastwest: 10 packets written in ")
    assert told[-3].endswith(f": 620 B on the wire, {octets(len(stream(10)))} of pcapng")
    assert told[-2:] == [
        "eastwest: 13 packets matched = 10 written + 2 beyond what was asked for + 1 lost (buffer_full)",
        "eastwest: 4 not matched by filter or direction",
    ]


def test_a_tap_that_somebody_else_removes_ends_a_capture(api: Stub, capsys: Capture, tmp_path: Path) -> None:
    """What came is kept; exit 1, as it was not asked for."""
    api.answers |= {
        "taps": tap(name=NAME, workloads=0), f"taps/{NAME}/stream": stream(3), "ledger/taps": [account(3)],
    }  # fmt: skip
    file = tmp_path / "x.pcapng"
    assert cli.main(["capture", "name=web", "-w", str(file)]) == 1
    assert file.read_bytes() == stream(3)
    told = capsys.readouterr().err
    assert "no workload matches 'name=web' now; waiting for one to come" in told
    assert "the tap was removed by somebody else, or has expired" in told
    assert told.endswith("eastwest: 3 packets matched = 3 written\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "'nonsense' is not a selector condition"),
        (["name=web", "--max-bytes", "much"], "'much' is not a number of bytes"),
        (["name=web", "--for", "soon"], "is not a length of time"),
        (["name=web", "--no-wait"], "no workload matches 'name=web' now; see: eastwest workloads"),
        (["name=web"], "libpcap refuses"),
    ],
)
def test_what_is_refused_leaves_the_file(
    api: Stub, capsys: Capture, tmp_path: Path, arguments: list[str], said: str
) -> None:
    api.answers["taps"] = (
        tap(workloads=0) if "--no-wait" in arguments else (400, {"error": "libpcap refuses"})
    )
    file = tmp_path / "x.pcapng"
    file.write_bytes(b"kept")
    assert cli.main(["capture", *arguments, "-w", str(file)]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert file.read_bytes() == b"kept"


def test_a_summary_that_does_not_add_up_says_so() -> None:
    outcome = Outcome(Counts(written=5, untaken=1), "", False, 2.0, account(9, missed_packets=2))
    assert summary(outcome)[1:] == [
        "9 packets matched = 5 written + 1 not taken by the reader of the output + 2 lost (reader_slow)",
        "which does not add up: +1 packets; see: eastwest ledger --taps",
    ]
    outcome = Outcome(Counts(written=5), "", True, 2.0, None)
    assert summary(outcome)[1] == "how many were matched is not known: the server does not answer"


def test_taps_are_added_listed_and_removed(api: Stub, capsys: Capture) -> None:
    """What was said reaches the API; the list says what is lost, and where nothing can be copied."""
    api.answers |= {"taps": tap(), "taps/web": tap()}
    more = [
        "-f",
        "tcp port 80",
        "--for",
        "forever",
        "--to",
        "app:9",
        "--tls",
        "--service-id",
        "7",
        "--segment",
        "--direction",
        "egress",
    ]
    assert cli.main(["tap", "add", "web", "name=web", *more]) == 0
    assert api.asked == [
        ("POST", "taps", {}, {
            "name": "web", "selector": "name=web", "filter": "tcp port 80", "for": "forever", "payload": "",
            "snaplen": 0, "segment": True, "service_id": 7, "to": "app:9", "tls": True, "store": True,
            "direction": "egress",
        }),
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "tap web: 1 workloads now, to files of the server",
        options.SEGMENT_PRICE,
    ]
    assert cli.main(["tap", "rm", "web"]) == 0
    assert api.asked[1][:2] == ("DELETE", "taps/web")
    refused = {"host": "h2", "points": 0, "connected": False, "refused": ["db: no\x1b"], "problem": "away"}
    api.answers["taps"] = [
        tap(matched=1234, pcap_over_ip="127.0.0.1:9000", lost={"busy": 2}, hosts=[*tap()["hosts"], refused])
    ]  # type: ignore[misc]
    for verb in (["taps"], ["tap", "list"]):
        capsys.readouterr()
        assert cli.main(verb) == 0
        shown = capsys.readouterr().out
        assert all(
            part in shown
            for part in ("1.23 k", "busy 2", "127.0.0.1:9000", "never", "web: h2: db: no?", "web: h2: away")
        )
        assert cli.main([*verb, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == api.answers["taps"]


def test_a_tap_is_read_for_as_long_as_it_is_enough(api: Stub, capsys: Capture, tmp_path: Path) -> None:
    """Nothing is ordered or taken back; what readers there missed meanwhile is said; exit 0."""
    api.answers |= {"taps/web": tap(), "taps/web/stream": stream(12)}
    accounts = iter([account(5, missed_packets=3), account(9, missed_packets=5)])
    api.answers["ledger/taps"] = lambda: [next(accounts)]
    file = tmp_path / "x.pcapng"
    assert cli.main(["tap", "read", "web", "-c", "10", "-w", str(file)]) == 0
    assert file.read_bytes() == stream(10)
    assert {method for method, *_ in api.asked} == {"GET"}
    told = capsys.readouterr().err.splitlines()
    assert told[-2].startswith("eastwest: 10 packets written in ")
    assert told[-1] == "eastwest: 2 missed at the server by who reads this tap there (reader_slow)"


def test_the_ledger_of_taps(api: Stub, capsys: Capture) -> None:
    rows = [account(5), account(9, tap="z", balanced=False, lost={"busy": 1})]
    api.answers["ledger/taps"] = rows
    assert cli.main(["ledger", "--taps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows
    assert cli.main(["ledger", "--taps"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["z", NAME]
    assert "NO" in lines[0]
