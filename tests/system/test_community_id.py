"""Community IDs as the database computes them: published examples, and an independent reference."""

import asyncio
import json
import random
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import communityid
import numpy as np

from eastwest.meter.rows import FLOW_ROW
from eastwest.store.batch import Batch
from eastwest.store.reads import FlowQuestion
from eastwest.store.store import Store, StoreConfig

Tuple = tuple[int, str, str, int, int]
"""Protocol, source, destination; ports, or ICMP type and code."""

ROUTER, HOST = "fe80::260:97ff:fe07:69ea", "fe80::200:86ff:fe05:80da"
PUBLISHED: dict[Tuple, tuple[str, str]] = {
    (6, "128.232.110.120", "66.35.250.204", 34855, 80): (
        "1:LQU9qZlK+B5F3KDmev6m5PMibrg=", "1:3V71V58M3Ksw/yuFALMcW0LAHvc=",
    ),
    (6, "2001:470:e5bf:dead:4957:2174:e82c:4887", "2607:f8b0:400c:c03::1a", 63943, 25): (
        "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=", "1:eJYTW6AOzFLlSUoESovMjnu7rMw=",
    ),
    (17, "8.8.8.8", "192.168.1.52", 53, 54585): (
        "1:d/FP5EW3wiY1vCndhwleRRKHowQ=", "1:Q9We8WO3piVF8yEQBNJF4uiSVrI=",
    ),
    (132, "192.168.170.56", "192.168.170.8", 7, 7): (
        "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs=", "1:5w3ZRjeKBzqT3zsaEECDGjUbYeg=",
    ),
    (1, "192.168.0.89", "192.168.0.1", 8, 0): (
        "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=", "1:03g6IloqVBdcZlPyX8r0hgoE7kA=",
    ),
    (1, "192.168.0.1", "192.168.0.89", 0, 0): (
        "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=", "1:03g6IloqVBdcZlPyX8r0hgoE7kA=",
    ),
    (1, "10.0.0.1", "10.0.0.2", 11, 0): (
        "1:YHxtAirCG//0OzkcVAukqKQN9xM=", "1:XjUibYHaafLQ3pxQeiMI8g25q20=",
    ),
    (58, HOST, ROUTER, 135, 0): ("1:dGHyGvjMfljg6Bppwm3bg0LO8TY=", "1:kHa1FhMYIT6Ym2Vm2AOtoOARDzY="),
    (58, ROUTER, HOST, 136, 0): ("1:dGHyGvjMfljg6Bppwm3bg0LO8TY=", "1:kHa1FhMYIT6Ym2Vm2AOtoOARDzY="),
    (58, "3ffe:501:410:0:2c0:dfff:fe47:33e", "3ffe:507:0:1:200:86ff:fe05:80da", 1, 4): (
        "1:hLZd0XGWojozrvxqE0dWB1iM6R0=", "1:W8MHwXpWzpoSTD+cGcaJr4u0ys8=",
    ),
    (46, "10.1.12.2", "10.1.12.1", 0, 0): (
        "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw=", "1:rYir8gphR31noO9iDRQmF/BteEI=",
    ),
}  # fmt: skip
"""IDs with seed 0 and 1, from the baseline of github.com/corelight/community-id-spec."""


def _packed(address: str) -> np.void:
    found = ip_address(address)
    if isinstance(found, IPv4Address):
        return np.void(bytes(10) + b"\xff\xff" + found.packed)
    return np.void(found.packed)


def _rows(tuples: list[Tuple]) -> Any:
    """One row for each; its label is its place."""
    rows = np.zeros(len(tuples), FLOW_ROW)
    for place, (protocol, src, dst, one, two) in enumerate(tuples):
        row = rows[place : place + 1]
        row["src"], row["dst"], row["protocol"], row["label"] = _packed(src), _packed(dst), protocol, place
        if protocol in (1, 58):
            row["dst_port"] = one << 8 | two
        else:
            row["src_port"], row["dst_port"] = one, two
    return rows


def _ids(directory: Path, rows: Any, seed: int = 0) -> list[str]:
    async def ask() -> bytes:
        async with Store(StoreConfig(path=directory, community_id_seed=seed)) as store:
            await store.write([Batch("h", 1, 1, "flows", rows)])
            return await store.flows(FlowQuestion(None, 0, 1 << 62, len(rows)), lines=True)

    flows = [json.loads(line) for line in asyncio.run(ask()).splitlines()]
    assert len(flows) == len(rows)
    return [flow["community_id"] for flow in sorted(flows, key=lambda flow: int(flow["label"]))]


def test_published_examples(tmp_path: Path) -> None:
    """IPv4, IPv6, TCP, UDP, SCTP, ICMP that is answered and that is not, and a protocol without ports."""
    rows = _rows(list(PUBLISHED))
    for seed in (0, 1):
        assert _ids(tmp_path / str(seed), rows, seed) == [ids[seed] for ids in PUBLISHED.values()]


def test_reference_says_the_same(tmp_path: Path) -> None:
    """Every ICMP type, every kind of protocol, equal and unequal ends, as their own library has it."""
    chosen = random.Random(1)
    four = [str(IPv4Address(n)) for n in (1, 2, 0xFF000001, 0xFFFFFFFF)]
    six = [str(IPv6Address(n)) for n in (1, 2, 1 << 64, (1 << 128) - 1)]
    tuples: list[Tuple] = []
    for protocol in (1, 58):
        for kind in range(256):
            ends = chosen.choices(four if chosen.random() < 0.5 else six, k=2)
            tuples.append((protocol, ends[0], ends[1], kind, chosen.choice((0, 1, 255))))
    for protocol in (6, 17, 132, 0, 2, 47, 255):
        for _ in range(100):
            ends = chosen.choices(four if chosen.random() < 0.5 else six, k=2)
            ports = chosen.choices((0, 1, 255, 256, 80, 65535), k=2) if protocol in (6, 17, 132) else (0, 0)
            tuples.append((protocol, *ends, *ports))
    reference = communityid.CommunityID(seed=513)
    expected = []
    for protocol, src, dst, one, two in tuples:
        ports = (one, two) if protocol in (1, 6, 17, 58, 132) else (None, None)
        expected.append(reference.calc(communityid.FlowTuple(protocol, src, dst, *ports)))
    assert None not in expected
    assert _ids(tmp_path, _rows(tuples), 513) == expected


def test_frames_that_are_not_ip_have_none(tmp_path: Path) -> None:
    """Nothing is made up for ARP."""
    rows = np.zeros(1, FLOW_ROW)
    rows["protocol"] = 0x0806
    assert _ids(tmp_path, rows) == [""]
