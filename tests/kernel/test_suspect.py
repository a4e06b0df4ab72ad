"""What is declared suspect is counted apart, exactly, from the cut on; nothing else is."""

from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from eastwest.errors import KernelError
from eastwest.kernel import trial
from eastwest.labels import suspect
from eastwest.meter.drain import Cut, Drain
from eastwest.meter.meter import Meter, Source
from eastwest.meter.suspects import Hits, SuspectMaps
from tests.kernel.frames import ethernet, extension, ipv4, ipv6, tcp, udp

UDP = ethernet(ipv4(udp(bytes(72)), 17), 0x0800)  # 10.0.0.1:1000 → 10.0.0.2:2000, 100 bytes of IP
UDP6 = ethernet(ipv6(udp(bytes(52)), 17), 0x86DD)  # fd00::1 → fd00::2, 100 bytes
ARP = ethernet(bytes(28), 0x0806)
NORMAL, SUSPECT = 0, 1


@pytest.fixture
def account(meter: Meter) -> int:
    """The account of interface 1, where test runs are sent."""
    number = meter.open_account()
    meter.set_port(1, Source(5, number))
    return number


def declare(maps: SuspectMaps, *texts: str) -> bool:
    """Make exactly these the entries."""
    targets = [suspect.parse(text) for text in texts]
    prefixes, flows = (
        {key for target in targets if target.kind == kind for key in target.keys}
        for kind in ("prefix", "flow")
    )
    return maps.replace(prefixes, flows)


def send(meter: Meter, frame: bytes, count: int, program: str = "port_ingress") -> None:
    assert trial.run(meter.program(program), frame, repeat=count, ifindex=1).verdict == 0xFFFFFFFF


def classes(cut: Cut) -> dict[int, int]:
    """class → packets in flows."""
    found: dict[int, int] = {}
    for key, counters in zip(cut.flows.keys, cut.flows.counters, strict=True):
        found[int(key["class"])] = found.get(int(key["class"]), 0) + int(counters["packets"])
    return found


def counted(maps: SuspectMaps) -> dict[str, tuple[int, int]]:
    return {text: (hits.packets, hits.bytes) for text, hits in maps.hits(0).items()}


CASES: list[tuple[str, bytes, int]] = [
    ("10.0.0.1", UDP, SUSPECT),
    ("10.0.0.2/32", UDP, SUSPECT),
    ("10.0.0.0/30", UDP, SUSPECT),
    ("0.0.0.0/0", UDP, SUSPECT),
    ("10.0.0.4/30", UDP, NORMAL),
    ("10.0.0.3", UDP, NORMAL),
    ("::/0", UDP, NORMAL),
    ("::/0", UDP6, SUSPECT),
    ("fd00::/64", UDP6, SUSPECT),
    ("fd00::2", UDP6, SUSPECT),
    ("fd00::3", UDP6, NORMAL),
    ("0.0.0.0/0", UDP6, NORMAL),
    ("::/0", ARP, NORMAL),
    ("udp 10.0.0.1:1000 10.0.0.2:2000", UDP, SUSPECT),
    ("udp 10.0.0.2:2000 10.0.0.1:1000", UDP, SUSPECT),
    ("udp 10.0.0.1:2000 10.0.0.2:1000", UDP, NORMAL),
    ("tcp 10.0.0.1:1000 10.0.0.2:2000", UDP, NORMAL),
    ("udp [fd00::1]:1000 [fd00::2]:2000", UDP6, SUSPECT),
    ("udp [fd00::1]:1000 [fd00::2]:2000", ethernet(ipv6(extension(17) + udp(), 60), 0x86DD), SUSPECT),
    ("tcp 10.0.0.1:1000 10.0.0.2:2000", ethernet(ipv4(tcp(), 6), 0x0800), SUSPECT),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]} {i}" for i, case in enumerate(CASES)])
def test_a_packet_is_suspect_where_an_entry_is_about_it(
    meter: Meter, account: int, case: tuple[str, bytes, int]
) -> None:
    """By source, destination or flow in either direction; both ways of the port; its hits are its packets."""
    text, frame, expected = case
    maps, drain = SuspectMaps(meter), Drain(meter)
    declare(maps, text)
    send(meter, frame, 3)
    send(meter, frame, 2, "port_egress")
    cut = drain.cut()
    row = cut.accounts[account].tolist()
    assert classes(cut) == {expected: 5}
    assert row[:4] == [2, row[1], 3, row[3]]
    assert row[4:8] == (row[:4] if expected else [0] * 4)
    octets = row[1] + row[3]
    assert counted(maps) == ({suspect.parse(text).text: (5, octets)} if expected else {})


def test_a_change_takes_effect_at_the_cut_that_follows_it(meter: Meter, account: int) -> None:
    """A flow that goes on is normal until the cut, suspect after it, and normal at once when taken back."""
    maps, drain = SuspectMaps(meter), Drain(meter)
    send(meter, UDP, 10)
    assert declare(maps, "10.0.0.0/8")
    send(meter, UDP, 5)  # known as normal in this half
    first = drain.cut()
    send(meter, UDP, 7)
    drain.clear(first.flows)
    second = drain.cut()
    send(meter, UDP, 4)
    assert declare(maps)
    send(meter, UDP, 2)
    drain.clear(second.flows)
    third = drain.cut()
    assert [classes(cut) for cut in (first, second, third)] == [
        {NORMAL: 15},
        {SUSPECT: 7},
        {SUSPECT: 4, NORMAL: 2},
    ]
    assert third.accounts[account].tolist()[2:8] == [28, 2800, 0, 0, 11, 1100]
    assert not declare(maps)


def test_no_entry_is_there_unseen(meter: Meter, account: int) -> None:
    """Where the kernel takes the first entries and refuses the last, those that it took are met."""
    maps, drain = SuspectMaps(meter), Drain(meter)
    most = maps.most[1] // 2
    flows = {"udp 10.0.0.1:1000 10.0.0.2:2000"} | {
        f"tcp 11.0.{n >> 8}.{n & 255}:1 11.1.0.1:1" for n in range(most)
    }
    with pytest.raises(KernelError):
        declare(maps, "10.0.0.0/8", *flows)
    maps.adopt()
    assert len(maps.loaded[0]) == 1
    send(meter, UDP, 3)
    assert classes(drain.cut()) == {SUSPECT: 3}
    declare(maps)
    send(meter, UDP, 2)
    assert int(meter.state()["suspects"]) == 0


def test_a_packet_is_the_hit_of_one_entry(meter: Meter, account: int) -> None:
    """Its flow's, else its source's longest prefix's, else its destination's: the sum is what is suspect."""
    maps, drain = SuspectMaps(meter), Drain(meter)
    declare(maps, "10.0.0.0/8", "10.0.0.0/30", "10.0.0.2", "udp 10.0.0.1:1000 10.0.0.2:53")
    send(meter, UDP, 3)  # by its source: 10.0.0.0/30
    send(meter, ethernet(ipv4(udp(bytes(72), 1000, 53), 17), 0x0800), 4)  # by its flow
    declare(maps, "10.0.0.0/8", "10.0.0.2", "udp 10.0.0.1:1000 10.0.0.2:53")
    send(meter, UDP, 5)  # by its source: 10.0.0.0/8
    cut = drain.cut()
    assert counted(maps) == {
        "10.0.0.0/8": (5, 500),
        "udp 10.0.0.1:1000 10.0.0.2:53": (4, 400),
    }
    assert cut.accounts[account].tolist()[6:8] == [12, 1200]


def test_a_full_flow_map_leaves_suspect_exact(meter: Meter, account: int) -> None:
    """Flows that find no room are looked at packet by packet: suspect packets and hits are all there."""
    maps, drain = SuspectMaps(meter), Drain(meter)
    declare(maps, "10.0.0.2")
    for n in range(25_000):
        send(meter, ethernet(ipv4(udp(bytes(72), src=1 + n % 50_000), 17), 0x0800), 1)
    cut = drain.cut()
    assert len(cut.flows.keys) == 20_000
    assert cut.accounts[account].tolist()[6:10] == [25_000, 2_500_000, 0, 0]
    assert counted(maps) == {"10.0.0.2/32": (25_000, 2_500_000)}


def test_a_hundred_thousand_prefixes(meter: Meter, account: int) -> None:
    """All are found, each with its own hits; their neighbours are not; others replace them."""
    maps, drain = SuspectMaps(meter), Drain(meter)
    networks = [f"11.{n >> 11 & 255}.{n >> 3 & 255}.{(n & 7) << 5}/28" for n in range(100_000)]
    maps.replace({suspect.prefix_key(text) for text in networks}, set())
    assert len(maps.loaded[0]) == 100_000
    rng, expected = np.random.default_rng(1), {}
    for n in rng.choice(100_000, 500, replace=False):
        inside = ip_network(networks[n])[int(rng.integers(16))]
        for address in (inside, inside + 16):
            frame = ethernet(_to(str(address)), 0x0800)
            send(meter, frame, 1)
        expected[networks[n]] = (1, 100)
    assert counted(maps) == expected
    assert classes(drain.cut()) == {SUSPECT: 500, NORMAL: 500}
    again = SuspectMaps(meter)
    again.adopt()
    assert again.loaded == maps.loaded
    assert again.replace({suspect.prefix_key(f"fd00:{n:x}::/32") for n in range(1 << 16)}, set())
    assert counted(again) == {}


def _to(address: str) -> bytes:
    packet = bytearray(ipv4(udp(bytes(72)), 17))
    packet[16:20] = ip_address(address).packed
    return bytes(packet)


def test_a_suspect_source_counts_the_hits_of_entries_too(meter: Meter, account: int) -> None:
    """What its own class makes suspect is counted once, and is a hit where an entry is about it as well."""
    maps, drain = SuspectMaps(meter), Drain(meter)
    meter.set_port(1, Source(5, account, suspect=True))
    declare(maps, "fd00::/8")
    send(meter, UDP, 3)
    send(meter, UDP6, 4)
    assert drain.cut().accounts[account].tolist()[2:8] == [7, 700, 0, 0, 7, 700]
    assert counted(maps) == {"fd00::/8": (4, 400)}


def test_last_is_when_it_was_last_met(meter: Meter, account: int) -> None:
    maps = SuspectMaps(meter)
    declare(maps, "10.0.0.1")
    send(meter, UDP, 1)
    (before,) = maps.hits(0).values()
    send(meter, UDP, 1)
    (after,) = maps.hits(0).values()
    assert 0 < before.last <= after.last
    assert after + Hits(1, 2, 3) == Hits(after.packets + 1, after.bytes + 2, after.last)
