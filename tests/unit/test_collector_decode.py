"""What a message may claim; whatever else it says, only Malformed comes out."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.bus.messages import EVIDENCE, FLOWS, TOTALS, WORKLOADS, Evidence
from eastwest.bus.stream import Message
from eastwest.collector.decode import REASONS, Malformed, decode
from eastwest.meter.rows import FLOW_ROW, TOTAL_ROW
from tests.system.fake_probe import workload

# Few characters: hypothesis takes seconds to make a table of all.
TEXT = st.text("hx1-. *>/\n\0é", max_size=20)
HEADERS = {"Ew-Host": "h", "Ew-Boot": "18446744073709551615", "Ew-Sequence": "0"}


def _message(subject: str, payload: bytes, headers: dict[str, str] | None = None) -> Message:
    return Message(subject, payload, HEADERS if headers is None else headers, 1)


def test_rows_come_out_as_they_went_in() -> None:
    rows = np.zeros(3, FLOW_ROW)
    rows["packets"] = 1, 2, 3
    batch = decode(_message(f"{FLOWS}.h", rows.tobytes()))
    assert batch.number == ("h", 2**64 - 1, 0)
    assert (batch.kind, batch.count, batch.packets) == ("flows", 3, 6)
    assert batch.rows is not None and batch.rows.tobytes() == rows.tobytes()
    assert decode(_message(f"{FLOWS}.h", b"")).count == 0


@pytest.mark.parametrize("host", ["node-1.example.org", "a", "x" * 127])
def test_host_names_with_dots_are_one_name(host: str) -> None:
    assert decode(_message(f"{TOTALS}.{host}", b"", HEADERS | {"Ew-Host": host})).host == host


@pytest.mark.parametrize(
    ("field", "value"),
    [("direction", 2), ("class", 2), ("packets", 1 << 60), ("bytes", 1 << 60), ("start", -1), ("end", -1)],
)
def test_impossible_flow_values_are_refused(field: str, value: int) -> None:
    rows = np.zeros(2, FLOW_ROW)
    rows[field][1] = value
    with pytest.raises(Malformed) as caught:
        decode(_message(f"{FLOWS}.h", rows.tobytes()))
    assert caught.value.reason == "values"


def test_more_suspect_packets_than_packets_are_refused() -> None:
    rows = np.zeros(1, TOTAL_ROW)
    rows["suspect_egress_packets"] = 1
    with pytest.raises(Malformed) as caught:
        decode(_message(f"{TOTALS}.h", rows.tobytes()))
    assert caught.value.reason == "values"
    rows["egress_packets"] = 1
    assert decode(_message(f"{TOTALS}.h", rows.tobytes())).count == 1


SEEN = Evidence(
    1, 7, "veth0", "egress", "192.0.2.0/24", "10.0.0.1", "192.0.2.9", 1, 2, 6, False, 40, bytes(40)
)


def test_evidence_comes_out_as_it_went_in() -> None:
    """Two packets of one host, the second of a frame that is not IP."""
    mac = msgspec.structs.replace(SEEN, protocol=0x0806, src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
    batch = decode(_message(f"{EVIDENCE}.h", msgspec.json.encode([SEEN, mac])))
    assert (batch.kind, batch.count, batch.packets, batch.evidence) == ("evidence", 2, 0, [SEEN, mac])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time", -1), ("label", 1 << 32), ("port", "p" * 256), ("entry", "e" * 256), ("src", "here"),
        ("dst", "fe80::1%\x1b"), ("src_port", 65536), ("protocol", -1), ("length", -1),
        ("packet", bytes(2049)),
    ],
)  # fmt: skip
def test_impossible_evidence_is_refused(field: str, value: object) -> None:
    """Each field has its bounds: the documents are shown to people and sent on."""
    with pytest.raises(Malformed) as caught:
        decode(
            _message(f"{EVIDENCE}.h", msgspec.json.encode([msgspec.structs.replace(SEEN, **{field: value})]))
        )
    assert caught.value.reason == "values"


def test_workloads_of_another_host_are_refused() -> None:
    """A probe speaks for its own host: one message with another's is refused whole."""
    own, others = workload(1, "web"), workload(2, "db", host="g")
    assert decode(_message(f"{WORKLOADS}.h", msgspec.json.encode([own]))).workloads == [own]
    with pytest.raises(Malformed, match="workloads of other hosts than h") as caught:
        decode(_message(f"{WORKLOADS}.h", msgspec.json.encode([own, others])))
    assert caught.value.reason == "values"


@given(
    st.sampled_from(
        [f"{FLOWS}.h", f"{TOTALS}.h", f"{WORKLOADS}.h", f"{EVIDENCE}.h", f"{FLOWS}.", "x", f"{FLOWS}.h.h"]
    ),
    st.binary(max_size=400),
    st.dictionaries(st.sampled_from([*HEADERS, "Other"]), st.one_of(TEXT, st.just("1"), st.just("h"))),
)
def test_any_message_decodes_or_is_malformed(subject: str, payload: bytes, headers: dict[str, str]) -> None:
    try:
        decode(_message(subject, payload, {"Ew-Host": "h", "Ew-Boot": "1", "Ew-Sequence": "1"} | headers))
    except Malformed as error:
        assert error.reason in REASONS


@given(st.recursive(st.none() | st.integers() | TEXT, st.lists, max_leaves=5))
def test_any_json_decodes_or_is_malformed(document: object) -> None:
    try:
        payload = msgspec.json.encode(document)
    except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
        return
    try:
        assert decode(_message(f"{WORKLOADS}.h", payload)).workloads == []
    except Malformed as error:
        assert error.reason == "json"
