"""Numbers, times and protocols as a person reads them. The JSON documents never pass through here."""

import re
from datetime import UTC, datetime

from eastwest.errors import RefusedError

EMPTY = "\N{EN DASH}"

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")

_PROTOCOLS = {
    1: "icmp",
    2: "igmp",
    4: "ipip",
    6: "tcp",
    17: "udp",
    41: "6in4",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "icmpv6",
    89: "ospf",
    103: "pim",
    112: "vrrp",
    132: "sctp",
    0x0806: "arp",
    0x8035: "rarp",
    0x8847: "mpls",
    0x88CC: "lldp",
    0x88E5: "macsec",
}
"""IANA protocol numbers (IPFIX IE 4) and, for frames that are not IP, EtherTypes (IE 256)."""

_TCP_FLAGS = "FSRPAUEC"

PORTLESS = frozenset(_PROTOCOLS) - {6, 17, 132}


def count(value: int | float) -> str:
    """A number with a decimal prefix: 999, 1.23 k, 45.6 M."""
    return _scaled(value).rstrip()


def octets(value: int | float) -> str:
    """Bytes: 999 B, 1.23 kB."""
    return f"{_scaled(value)}B"


def bits(value: int | float) -> str:
    """Bits: 999 b, 1.23 kb."""
    return f"{_scaled(value)}b"


def _scaled(value: int | float) -> str:
    scaled, prefix = float(value), ""
    for prefix in _PREFIXES:
        # 999.5 and more would be shown as 1000 with three digits.
        if scaled < 999.5 or prefix == _PREFIXES[-1]:
            break
        scaled /= 1000
    if prefix == "" and scaled == int(scaled):
        return f"{int(scaled)} "
    return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {prefix}"


def size(text: str) -> int:
    """Bytes of `text`, like 500, 10k, 10M or 2G. Raises RefusedError."""
    found = re.fullmatch(r"([0-9]{1,15})([kMGT]?)B?", text)
    if found is None:
        raise RefusedError(f"'{text}' is not a number of bytes", "write 500, 10k, 10M or 2G")
    return int(found[1]) * int(1000 ** _PREFIXES.index(found[2]))


def protocol(number: int) -> str:
    """tcp, udp, arp; the number where it has no name here, an EtherType in hexadecimal."""
    return _PROTOCOLS.get(number) or (f"0x{number:04x}" if number > 255 else str(number))


def tcp_flags(value: int) -> str:
    """The flags that occurred, as letters: SA is SYN and ACK."""
    return "".join(letter for bit, letter in enumerate(_TCP_FLAGS) if value >> bit & 1) or EMPTY


def endpoint(address: str, port: int, number: int) -> str:
    """address:port; an IPv6 address in brackets; no port for a protocol that has none."""
    if not port or number in PORTLESS:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def moment(text: str | None) -> datetime | None:
    """An RFC 3339 time of the API."""
    return datetime.fromisoformat(text) if text else None


def clock(text: str | None) -> str:
    """A time of the API as this terminal's local time, with the date if it is not today."""
    when = moment(text)
    if when is None:
        return EMPTY
    local = when.astimezone()
    today = datetime.now().astimezone().date()
    return local.strftime("%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M")


def ago(text: str | None) -> str:
    """How long ago a time of the API was: 12 s, 3 min, 5 h, 2 d."""
    when = moment(text)
    if when is None:
        return EMPTY
    seconds = max(0.0, (datetime.now(UTC) - when).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
