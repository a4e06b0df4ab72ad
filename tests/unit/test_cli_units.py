"""Numbers and times as a person reads them."""

from datetime import UTC, datetime, timedelta

import pytest

from eastwest.cli import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00 k"),
        (1234, "1.23 k"),
        (99_960, "100 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (12_345_678, "12.3 M"),
        (2.5, "2.50"),
        (10**21, "1000 E"),
    ],
)
def test_count(value: float, text: str) -> None:
    """Three digits and a decimal prefix."""
    assert units.count(value) == text


def test_units_follow_their_numbers() -> None:
    """Bytes and bits bear their unit after the prefix."""
    assert units.octets(0) == "0 B"
    assert units.octets(1500) == "1.50 kB"
    assert units.bits(8_000_000) == "8.00 Mb"


def test_protocols_have_names() -> None:
    """Known protocols and EtherTypes by name, others by number."""
    names = [units.protocol(n) for n in (1, 6, 17, 58, 132, 0x0806, 200, 0x9999)]
    assert names == ["icmp", "tcp", "udp", "icmpv6", "sctp", "arp", "200", "0x9999"]


def test_tcp_flags() -> None:
    """SYN and ACK are SA; none is a dash."""
    assert units.tcp_flags(0x12) == "SA"
    assert units.tcp_flags(0) == units.EMPTY


def test_endpoints() -> None:
    """Ports follow addresses, IPv6 in brackets; ICMP and ARP have none."""
    assert units.endpoint("10.0.0.1", 80, 6) == "10.0.0.1:80"
    assert units.endpoint("fd00::1", 53, 17) == "[fd00::1]:53"
    assert units.endpoint("10.0.0.1", 0, 6) == "10.0.0.1"
    assert units.endpoint("10.0.0.1", 2048, 1) == "10.0.0.1"
    assert units.endpoint("02:00:00:00:00:01", 0, 0x0806) == "02:00:00:00:00:01"


def test_times() -> None:
    """The API's nanoseconds are understood; what never was is a dash."""
    assert units.moment("2024-01-01T00:00:00.123456789Z") == datetime(2024, 1, 1, 0, 0, 0, 123456, UTC)
    assert units.clock(None) == units.EMPTY
    assert units.ago(None) == units.EMPTY
    now = datetime.now(UTC)
    ages = [timedelta(seconds=5), timedelta(minutes=3), timedelta(hours=30)]
    assert [units.ago((now - age).isoformat()).split()[1] for age in ages] == ["s", "min", "d"]
