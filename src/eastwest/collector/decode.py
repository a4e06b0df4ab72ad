"""From message to batch: everything a message claims is checked before it meets the rows of others."""

import ipaddress
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from eastwest.bus.messages import (
    BOOT_HEADER,
    EVIDENCE,
    FLOWS,
    HOST_HEADER,
    SEQUENCE_HEADER,
    TOTALS,
    WORKLOADS,
    Evidence,
    Workload,
)
from eastwest.bus.stream import Message
from eastwest.meter.rows import FLOW_ROW, TOTAL_ROW
from eastwest.store.batch import Batch, Kind

REASONS = ("headers", "subject", "size", "values", "json")
"""Why a message is refused."""

_KINDS: dict[str, Kind] = {FLOWS: "flows", TOTALS: "totals", WORKLOADS: "workloads", EVIDENCE: "evidence"}
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}")
_NUMBER = re.compile(r"[0-9]{1,20}")
# Far above what a link carries between two drains or in a life; far below where sums of many overflow.
_MAX_COUNT = 1 << 52
_MAX_TIME = 1 << 63
_MAX_LABEL = (1 << 32) - 1
_MAX_TEXT = 4096
_MAX_LIST = 4096
_MAX_NAME = 255
_MAX_PACKET = 2048
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")

T = TypeVar("T")


class Malformed(Exception):
    """A message that can never be stored; `reason` is one of REASONS."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


def decode(message: Message) -> Batch:
    """The batch that a message holds. Raises Malformed."""
    host = message.headers.get(HOST_HEADER, "")
    if not _HOST.fullmatch(host):
        raise Malformed("headers", f"no host in {HOST_HEADER}")
    boot, sequence = _number(message, BOOT_HEADER), _number(message, SEQUENCE_HEADER)
    subject, _, sender = message.subject.partition(f".{host}")
    if subject not in _KINDS or sender:
        raise Malformed("subject", f"{message.subject} does not belong to host {host}")
    kind = _KINDS[subject]
    if kind == "workloads":
        workloads = _documents(message.payload, Workload, _sane_workload)
        if any(workload.host != host for workload in workloads):
            raise Malformed("values", f"workloads of other hosts than {host}")
        return Batch(host, boot, sequence, kind, workloads=workloads)
    if kind == "evidence":
        evidence = _documents(message.payload, Evidence, _sane_evidence)
        return Batch(host, boot, sequence, kind, evidence=evidence)
    row, sane = (FLOW_ROW, _sane_flows) if kind == "flows" else (TOTAL_ROW, _sane_totals)
    return Batch(host, boot, sequence, kind, rows=_rows(message.payload, row, sane))


def _number(message: Message, header: str) -> int:
    text = message.headers.get(header, "")
    if not _NUMBER.fullmatch(text) or int(text) >= 1 << 64:
        raise Malformed("headers", f"no number in {header}")
    return int(text)


def _rows(payload: bytes, row: np.dtype[Any], sane: Callable[[NDArray[Any]], bool]) -> NDArray[Any]:
    if len(payload) % row.itemsize:
        raise Malformed("size", f"{len(payload)} bytes are no multiple of {row.itemsize}")
    rows = np.frombuffer(payload, row)
    if not sane(rows):
        raise Malformed("values", "impossible values")
    return rows


def _sane_flows(rows: NDArray[Any]) -> bool:
    return bool(
        (rows["direction"] <= 1).all()
        and (rows["class"] <= 1).all()
        and (rows["packets"] < _MAX_COUNT).all()
        and (rows["bytes"] < _MAX_COUNT).all()
        and (rows["start"] >= 0).all()
        and (rows["end"] >= 0).all()
    )


def _sane_totals(rows: NDArray[Any]) -> bool:
    names = TOTAL_ROW.names or ()
    counters = [name for name in names if name.endswith(("_packets", "_bytes"))]
    return bool(
        all((rows[name] < _MAX_COUNT).all() for name in counters)
        and all(
            (rows[name] <= rows[name.removeprefix("suspect_")]).all()
            for name in counters
            if "suspect_" in name
        )
        and (rows["enforced_packets"] <= rows["ingress_packets"] + rows["egress_packets"]).all()
        and (rows["enforced_bytes"] <= rows["ingress_bytes"] + rows["egress_bytes"]).all()
        and (rows["first_seen"] >= 0).all()
        and (rows["last_seen"] >= 0).all()
    )


def _documents(payload: bytes, kind: type[T], sane: Callable[[T], bool]) -> list[T]:
    try:
        documents: list[T] = msgspec.json.decode(payload, type=list[kind])  # type: ignore[valid-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("json", str(error)) from error
    if not all(map(sane, documents)):
        raise Malformed("values", "impossible values")
    return documents


def _sane_workload(workload: Workload) -> bool:
    return (
        0 < workload.label <= _MAX_LABEL
        and 0 <= workload.service_id <= _MAX_LABEL
        and 0 <= workload.first_seen < _MAX_TIME
        and 0 <= workload.last_seen < _MAX_TIME
        and _bounded(workload)
    )


def _bounded(workload: Workload) -> bool:
    """Whether its texts and lists are of a size that a workload can have."""
    lists = (workload.ports, workload.addresses, workload.past_ports, workload.past_addresses)
    texts = (
        workload.name, workload.kind, workload.tenant, workload.network, workload.service, workload.cgroup,
        *workload.addresses, *workload.past_ports, *workload.past_addresses,
        *(text for port in workload.ports for text in (port.name, port.mac)),
    )  # fmt: skip
    return (
        all(len(found) <= _MAX_LIST for found in lists)
        and all(len(text) <= _MAX_TEXT for text in texts)
        and all(0 <= port.ifindex <= _MAX_LABEL for port in workload.ports)
    )


def _sane_evidence(seen: Evidence) -> bool:
    return (
        0 <= seen.time < _MAX_TIME
        and 0 <= seen.label <= _MAX_LABEL
        and max(len(seen.port), len(seen.entry)) <= _MAX_NAME
        and _is_address(seen.src)
        and _is_address(seen.dst)
        and all(0 <= n < 1 << 16 for n in (seen.src_port, seen.dst_port, seen.protocol))
        and 0 <= seen.length < _MAX_COUNT
        and len(seen.packet) <= _MAX_PACKET
    )


def _is_address(text: str) -> bool:
    try:
        # An interface's name behind an IPv6 address may hold anything.
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return _MAC.fullmatch(text) is not None
