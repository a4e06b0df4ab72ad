"""What taps are told, and the blocks that name where packets are from."""

import json

import pytest

from eastwest.errors import ConfigError
from eastwest.kernel.rings import BEYOND, ring_size
from eastwest.tap import pcapng
from eastwest.tap.config import TapConfig
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
