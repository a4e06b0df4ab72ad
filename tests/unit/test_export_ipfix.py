"""IPFIX messages, read back by a reader of RFC 7011 that shares nothing with the writer."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.bus.messages import Workload
from eastwest.errors import ConfigError
from eastwest.export import ipfix
from eastwest.export.config import IpfixConfig
from eastwest.export.services import Services
from eastwest.export.session import parse
from eastwest.meter.rows import FLOW_ROW
from tests.system.fake_probe import START, flow_rows, workload

PEN = 32473
MAC = bytes(10) + b"\x02\0\0\0\0\x01"


def sets(message: bytes) -> tuple[tuple[int, ...], list[tuple[int, bytes]]]:
    """Header and sets of a message."""
    header = struct.unpack(">HHIII", message[:16])
    assert header[:2] == (10, len(message))
    found, at = [], 16
    while at < len(message):
        number, length = struct.unpack_from(">HH", message, at)
        assert length >= 4
        found.append((number, message[at + 4 : at + length]))
        at += length
    assert at == len(message)
    return header, found


def templates(body: bytes, scopes: bool = False) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Template ID and fields (enterprise or 0, element, length) of each template in a set."""
    at = 0
    while at < len(body):
        template, count = struct.unpack_from(">HH", body, at)
        at += 6 if scopes else 4
        fields = []
        for _ in range(count):
            element, length = struct.unpack_from(">HH", body, at)
            at += 4
            enterprise = 0
            if element & 0x8000:
                (enterprise,) = struct.unpack_from(">I", body, at)
                at += 4
            fields.append((enterprise, element & 0x7FFF, length))
        yield template, fields


def described() -> dict[int, list[tuple[int, int, int]]]:
    message, _ = ipfix.description("node-1", PEN, domain=7, sequence=0, time=1)
    return dict(templates(dict(sets(message)[1])[2]))


def read(messages: list[bytes]) -> list[dict[tuple[int, int], bytes]]:
    """Every record: (enterprise, element) → bytes."""
    known, found = described(), []
    for message in messages:
        for template, body in sets(message)[1]:
            at = 0
            while at < len(body):
                record = {}
                for enterprise, element, length in known[template]:
                    record[enterprise, element] = body[at : at + length]
                    at += length
                found.append(record)
    return found


def written(rows: Any, ids: Any, limit: int = 1400, sequence: int = 0) -> list[bytes]:
    found = []
    for template, records in ipfix.records(rows, ids):
        for group in ipfix.messages(
            template, records, domain=7, sequence=sequence, time=1_700_000_000, limit=limit
        ):
            sequence += len(group.data) // group.size * group.each
            found += [bytes(group.data[at : at + group.size]) for at in range(0, len(group.data), group.size)]
    return found


def number(record: dict[tuple[int, int], bytes], element: int, enterprise: int = 0) -> int:
    return int.from_bytes(record[enterprise, element], "big")


def test_every_field_of_a_flow_is_in_its_record() -> None:
    """Addresses, ports, flags, counters, times in milliseconds, direction, port, label, service, class."""
    rows = flow_rows([5], [12345678901])
    rows["class"] = 1
    (record,) = read(written(rows, np.array([77], "<u4")))
    assert record[0, 8] == b"\x0a\0\0\x01" and record[0, 12] == b"\x0a\0\0\x02"
    assert [number(record, e) for e in (7, 11, 4, 6, 2, 1, 61)] == [
        1000, 80, 6, 0x1B, 12345678901, 1234567890100, 1,
    ]  # fmt: skip
    assert (number(record, 152), number(record, 153)) == (START // 10**6, START // 10**6 + 1000)
    assert record[0, 82] == b"veth0".ljust(16, b"\0")
    assert [number(record, e, PEN) for e in (1, 2, 3)] == [5, 77, 1]


def test_each_kind_of_flow_has_its_template() -> None:
    """IPv4, IPv6, ICMP over either, and ARP: elements that fit, and nothing of the others."""
    rows = flow_rows([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    six = np.void(bytes.fromhex("20010db8000000000000000000000001"))
    rows["src"][[1, 3]] = rows["dst"][[1, 3]] = six
    rows["src"][4] = rows["dst"][4] = np.void(MAC)
    rows["protocol"] = 17, 17, 1, 58, 0x0806
    rows["dst_port"][[2, 3]] = 0x0800, 0x8000
    found = read(written(rows, np.zeros(5, "<u4")))
    assert [number(r, 1, PEN) for r in found] == [1, 2, 3, 4, 5]
    shared = {2, 1, 152, 153, 61, 82}
    standard = [{element for enterprise, element in r if not enterprise} - shared for r in found]
    assert standard == [
        {8, 12, 7, 11, 4, 6},
        {27, 28, 7, 11, 4, 6},
        {8, 12, 4, 32},
        {27, 28, 4, 139},
        {56, 80, 256},
    ]
    assert found[1][0, 27] == six.tobytes()
    assert (number(found[2], 32), number(found[3], 139)) == (0x0800, 0x8000)
    assert (found[4][0, 56], number(found[4], 256)) == (MAC[10:], 0x0806)


@given(st.integers(0, 300), st.integers(200, 3000), st.integers(0, (1 << 32) - 1))
def test_messages_are_bounded_and_numbered(count: int, limit: int, sequence: int) -> None:
    """No message is longer than the limit; each begins with the number of records before it, modulo 2**32."""
    rows = flow_rows(list(range(count)), list(range(count)))
    messages = written(rows, np.zeros(count, "<u4"), limit, sequence)
    for message in messages:
        assert len(message) <= limit
        header, _ = sets(message)
        assert header[2:] == (1_700_000_000, sequence, 7)
        sequence = (sequence + len(read([message]))) & 0xFFFFFFFF
    assert [number(record, 1, PEN) for record in read(messages)] == list(range(count))


def test_description_fits_the_smallest_datagram_and_names_host_and_elements() -> None:
    """Templates, options templates, the host's name (IE 300) and RFC 5610's types, in one message."""
    message, records = ipfix.description("h" * 127, 0xFFFFFFFF, domain=9, sequence=3, time=4)
    assert len(message) <= 1200
    header, found = sets(message)
    assert header[2:] == (4, 3, 9)
    assert [number for number, _ in found] == [2, 3, 3, 512, 513]
    options = dict(templates(found[1][1], scopes=True)) | dict(templates(found[2][1], scopes=True))
    assert options[512] == [(0, 149, 4), (0, 300, 65535)]
    assert found[3][1] == struct.pack(">I", 9) + b"\x7f" + b"h" * 127
    assert [element for _, element, _ in options[513]] == [346, 303, 339, 344, 345, 341]
    assert found[4][1].startswith(struct.pack(">IHBBH", 0xFFFFFFFF, 1, 3, 5, 0) + b"\x0deastwestLabel")
    assert records == 4
    sizes = {template: sum(length for *_, length in fields) for template, fields in described().items()}
    assert sizes == {template: ipfix.record(template).itemsize for template in ipfix.TEMPLATES}


@given(st.dictionaries(st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1), max_size=8), st.data())
def test_service_ids_are_looked_up_by_label(known: dict[int, int], data: st.DataObject) -> None:
    """The ID that was said last; 0 for labels of which nothing was said."""
    services = Services()
    told: list[Workload] = [workload(label, "x", service_id=n) for label, n in known.items()]
    services.learn(told)
    labels = data.draw(st.lists(st.one_of(st.integers(0, 2**32 - 1), *map(st.just, known)), max_size=9))
    got = services.of(np.array(labels, "<u4"))
    assert got.tolist() == [known.get(label, 0) for label in labels]


def test_rows_with_nothing_in_them_are_encoded() -> None:
    """What is all zeros is a record as well."""
    rows = np.zeros(2, FLOW_ROW)
    assert len(read(written(rows, np.zeros(2, "<u4")))) == 2


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("udp://10.0.0.9", "10.0.0.9", 4739), ("tcp://[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("udp://sammler.bücher.example:9995", "sammler.bücher.example", 9995), ("tcp://a_b", "a_b", 4739),
    ],
)  # fmt: skip
def test_collectors_by_name_and_address(url: str, host: str, port: int) -> None:
    """The registered port where none is given."""
    assert parse(url)[1:] == (host, port)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"collector": "host:4739"}, "export.ipfix.collector is no collector; write it like udp://host:4739"),
        ({"collector": "udp://host:0"}, "is no collector"),
        ({"collector": "udp://host:99999"}, "is no collector"),
        ({"collector": "udp://[::1"}, "is no collector"),
        ({"collector": "http://host"}, "is no collector"),
        ({"collector": "udp://" + "a" * 64}, "is no collector"),
        ({"collector": "udp://a\0b:1"}, "is no collector"),
        ({"collector": "tcp://user:secret@host"}, "is no collector"),
        ({"enterprise": 0}, "export.ipfix.enterprise = 0 is out of range; set 1 to 4294967295"),
        ({"datagram_bytes": 100}, "set 1200 to 65000"),
        ({"template_seconds": float("nan")}, "out of range"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], said: str) -> None:
    """At once, with the key."""
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        IpfixConfig(**settings)
