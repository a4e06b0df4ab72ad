"""What taps are told, and the blocks that name where packets are from."""

import json
import struct

import pytest

from eastwest.bus.address import host_port
from eastwest.errors import ConfigError, RefusedError
from eastwest.kernel.rings import BEYOND, ring_size
from eastwest.tap import pcapng
from eastwest.tap.config import TapConfig
from eastwest.tap.filter import check_text
from eastwest.tap.payload import Payload
from eastwest.tap.payload import parse as parse_payload
from tests.kernel.blocks import parse

MIB = 1 << 20


@pytest.mark.parametrize(
    ("memory", "cpus", "ring"),
    [(40 * MIB, 2, 16 * MIB), (40 * MIB, 64, MIB // 2), (16 * MIB, 64, MIB // 8), (16 * MIB - 1, 64, 0)],
)
def test_rings_stay_within_a_destinations_memory(memory: int, cpus: int, ring: int) -> None:
    """The largest power of two; on 64 CPUs the smallest rings take 16 MiB, and less is refused."""
    assert ring_size(memory, cpus) == ring
    assert cpus * (ring + BEYOND) <= memory or not ring


def test_too_little_memory_is_refused_with_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"memory = 1000; \d+ CPUs need at least \d+"):
        TapConfig(memory=1000)


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="enterprise = 4294967296"):
        TapConfig(enterprise=1 << 32)


def test_names_that_anybody_made_cannot_break_a_block() -> None:
    """Control characters are escaped, length is bounded, quotes stay inside the comment's JSON."""
    hostile = 'a"}\x1b[2J\n' + "ü" * 70000
    of = pcapng.Interface(hostile, hostile, hostile, hostile, hostile, 7, filter=hostile, hardware=hostile)
    (section,) = parse(pcapng.section(hostile) + pcapng.interface(of))
    (interface,) = section.interfaces
    for options in (section.options, interface.options):
        for value in options.values():
            assert len(value) < 1 << 14
            assert value.lstrip(b"\0\x09").decode().isprintable()
    facts = json.loads(interface.options[1])
    assert facts["label"] == 7
    assert facts["workload"].startswith('a"}\\x1b[2J\\nüü')
    assert len(facts["workload"]) == 1024


def test_what_is_not_known_is_not_said() -> None:
    """No empty options: a port of a workload whose tenant and network nobody told."""
    (section,) = parse(pcapng.section("h") + pcapng.interface(pcapng.Interface("eth7", "h", "web")))
    (interface,) = section.interfaces
    assert set(interface.options) == {1, 2, 3, 9}
    assert interface.options[3] == b"web (host h)"


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("", None),
        ("474554", Payload(b"GET")),
        ("474554@0", Payload(b"GET", 0)),
        ("474554<64", Payload(b"GET", None, 64)),
    ],
)
def test_a_byte_pattern_is_written_in_hexadecimal(text: str, payload: Payload | None) -> None:
    assert parse_payload(text) == payload


@pytest.mark.parametrize("text", ["GET", "47455", "474554@", "474554@99999", "474554<2", "47" * 33, "47@0<9"])
def test_a_pattern_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_payload(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [("h.example:1", ("h.example", 1)), ("10.0.0.9:65535", ("10.0.0.9", 65535)), ("[::1]:80", ("::1", 80))],
)
def test_where_copies_go(text: str, address: tuple[str, int]) -> None:
    assert host_port(text) == address


@pytest.mark.parametrize(
    "text", ["", "h", ":1", "h:0", "h:65536", "h:x", "::1:80", "[::1]", "a b:1", "h:1\n"]
)
def test_where_copies_cannot_go(text: str) -> None:
    with pytest.raises(RefusedError):
        host_port(text)


def test_a_filter_is_looked_at_without_privileges() -> None:
    """What is none is refused with libpcap's words; and no name is asked for on the network."""
    check_text("")
    check_text("vlan 7 and tcp port http")
    for text in ("tcp prot 80", "host nowhere.example", "ip protochain 6", "x" * 70_000):
        with pytest.raises(RefusedError):
            check_text(text)


def test_a_key_is_in_an_option_that_nobody_copies() -> None:
    """Our text in opt_custom 19372, and the tap's name in the comment; without a key, no option."""
    (shown,) = parse(pcapng.section("h", "web-errors", "secret", 32473))
    assert json.loads(shown.options[1]) == {"host": "h", "tap": "web-errors"}
    assert shown.options[19372] == struct.pack("=I", 32473) + b"secret"
    (plain,) = parse(pcapng.section("h", "web-errors"))
    assert set(plain.options) == {1, 3, 4}
