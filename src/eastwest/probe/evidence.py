"""Evidence of suspect traffic: packets that the kernel picked, labelled, on their way to the store.

A sample, bounded everywhere: by entry and second in the kernel, by its buffer, and by cut here. What found no
room is counted. Packets of an account that waits for its workload wait with it.
"""

from ipaddress import IPv6Address
from types import TracebackType
from typing import Any, Self

import numpy as np

from eastwest.bus.messages import Evidence
from eastwest.kernel.events import RingBuffer
from eastwest.kernel.records import enumeration, record
from eastwest.labels.suspect import flow_key, flow_text, matched_prefix
from eastwest.meter.accounts import Accounts
from eastwest.meter.meter import Meter

_MOST = 4096
_IP_PROTOCOLS = 256


class EvidenceReader:
    """Takes evidence out of the kernel. Enter it before use; driven by the cutter, from one task only."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._waiting: list[bytes] = []
        self._ready: list[Evidence] = []
        self._dropped = 0
        self._buffer: RingBuffer | None = None

    def __enter__(self) -> Self:
        self._buffer = RingBuffer(self._meter.map("evidence_events"), self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._buffer is not None:
            self._buffer.close()

    def _receive(self, event: bytes) -> None:
        if len(self._waiting) + len(self._ready) < _MOST:
            self._waiting.append(event)
        else:
            self._dropped += 1

    @property
    def lost(self) -> int:
        """Packets of which evidence was due and found no room: in the kernel, here or in the outbox."""
        value = self._meter.map("evidence_lost").lookup(bytes(4)) or b""
        return self._dropped + int(np.frombuffer(value, "<u8").sum())

    def ready(self, accounts: Accounts, clock_offset: int) -> list[Evidence]:
        """What there is of decided accounts, until it is `sent` or given up; `clock_offset`: unix less
        monotonic, ns."""
        if self._buffer is None:
            return []
        self._buffer.consume()
        waiting = []
        for event in self._waiting:
            seen = np.frombuffer(event, record("evidence"))[0]
            row = accounts.table[int(seen["key"]["account"])]
            if row["open"] and not row["decided"]:
                waiting.append(event)
            else:
                self._ready.append(_evidence(seen, int(row["label"]), row["port"].decode(), clock_offset))
        self._waiting = waiting
        return self._ready

    def sent(self) -> None:
        """What was ready is in the outbox for good."""
        self._ready = []

    def give_up(self) -> None:
        """The outbox has no room for what is ready."""
        self._dropped += len(self._ready)
        self._ready = []


def _evidence(seen: Any, label: int, port: str, clock_offset: int) -> Evidence:
    key = seen["key"]
    src, dst, protocol = bytes(key["src"]), bytes(key["dst"]), int(key["protocol"])
    egress = enumeration("direction")["DIRECTION_EGRESS"]
    return Evidence(
        time=int(seen["time"]) + clock_offset,
        label=label,
        port=port,
        direction="egress" if key["direction"] == egress else "ingress",
        entry=_entry(seen, src, dst),
        src=_address(src, protocol),
        dst=_address(dst, protocol),
        src_port=int(key["src_port"]),
        dst_port=int(key["dst_port"]),
        protocol=protocol,
        dropped=bool(seen["dropped"]),
        length=int(seen["length"]),
        packet=bytes(seen["packet"])[: int(seen["captured"])],
    )


def _entry(seen: Any, src: bytes, dst: bytes) -> str:
    kinds, key = enumeration("suspect_match"), seen["key"]
    if seen["match"] == kinds["MATCH_FLOW"]:
        ports = int(key["src_port"]), int(key["dst_port"])
        return flow_text(flow_key(src, dst, *ports, int(key["protocol"])))
    if seen["match"] == kinds["MATCH_CLASS"]:
        return ""
    return matched_prefix(src if seen["match"] == kinds["MATCH_SRC"] else dst, int(seen["prefix_length"]))


def _address(raw: bytes, protocol: int) -> str:
    if protocol >= _IP_PROTOCOLS:
        return raw[10:].hex(":")
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)
