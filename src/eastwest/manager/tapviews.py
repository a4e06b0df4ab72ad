"""From what probes answer about their taps to what the API says of each."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from eastwest.bus.taps import TapOrder, TapPoint, TapsAnswer, TapStream
from eastwest.manager.tapmodels import Tap, TapHost, TapLedgerEntry
from eastwest.manager.views import rfc3339


def tap(order: TapOrder, hosts: Sequence[TapHost], workloads: int, pcap_over_ip: str = "") -> Tap:
    """An order as it stands; its key stays here."""
    return Tap(
        name=order.name,
        selector=order.selector,
        filter=order.filter,
        direction=order.direction,
        payload=order.payload,
        snaplen=order.snaplen,
        segment=order.segment,
        service_id=order.service_id,
        to=order.to,
        receiver=order.receiver,
        tls=order.tls,
        store=order.store,
        added=rfc3339(order.added),
        expires=rfc3339(order.expires),
        pcap_over_ip=pcap_over_ip,
        workloads=workloads,
        matched=sum(host.matched for host in hosts),
        delivered=sum(host.confirmed for host in hosts),
        lost=_lost(host.lost for host in hosts),
        hosts=list(hosts),
    )


def host(name: str, answer: TapsAnswer, names: Mapping[int, str]) -> TapHost | None:
    """What one probe says of a tap; None where it has nothing to say."""
    points, past, streams = _parts(name, answer)
    if name not in answer.taps and not points and not past and not streams:
        return None
    # What is wrong with a tap that takes nothing and has never sent anything is wrong with the order.
    begun = bool(points) or any(stream.sent_bytes for stream in streams)
    return TapHost(
        host=answer.host,
        points=sum(not point.problem for point in points),
        connected=any(stream.connected for stream in streams),
        matched=sum(point.matched for point in (*points, *past)),
        not_matched=sum(point.not_matched for point in (*points, *past)),
        own=sum(point.own for point in (*points, *past)),
        written=sum(point.written for point in (*points, *past)),
        pending=sum(stream.pending + stream.unanswered for stream in streams),
        confirmed=sum(stream.confirmed for stream in streams),
        sent_bytes=sum(stream.sent_bytes for stream in streams),
        reconnects=sum(stream.reconnects for stream in streams),
        lost=_lost([*(part.lost for part in (*points, *past)), *(stream.lost for stream in streams)]),
        refused=[f"{_where(point, names)}: {point.problem}" for point in points if point.problem]
        + [stream.problem for stream in streams if stream.problem and not begun],
        problem="; ".join(stream.problem for stream in streams if stream.problem and begun),
    )


def _parts(name: str, answer: TapsAnswer) -> tuple[list[TapPoint], list[TapPoint], list[TapStream]]:
    return (
        [point for point in answer.points if point.tap == name],
        [point for point in answer.past if point.tap == name],
        [stream for stream in (*answer.streams, *answer.past_streams) if stream.tap == name],
    )


def _where(point: TapPoint, names: Mapping[int, str]) -> str:
    place = f", port {point.port}" if point.port else ""
    return f"{names.get(point.label, 'workload')} (label {point.label}){place}"


def _lost(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {place: packets for place, packets in sorted(total.items()) if packets}


def ledger(
    orders: Iterable[TapOrder],
    answers: Sequence[TapsAnswer],
    unstored: Mapping[str, int],
    missed: Mapping[str, int],
) -> list[TapLedgerEntry]:
    """Every tap that an order or a probe knows, by name; what the collector and readers lost, by tap."""
    names = {order.name for order in orders}
    for answer in answers:
        names |= {part.tap for part in (*answer.points, *answer.past)}
        names |= {part.tap for part in (*answer.streams, *answer.past_streams)}
    return [_entry(name, answers, unstored.get(name, 0), missed.get(name, 0)) for name in sorted(names)]


def _entry(name: str, answers: Sequence[TapsAnswer], unstored: int, missed: int) -> TapLedgerEntry:
    hosts = [found for answer in answers if (found := host(name, answer, {}))]
    return TapLedgerEntry(
        tap=name,
        seen_packets=sum(one.matched for one in hosts),
        not_matched_packets=sum(one.not_matched for one in hosts),
        delivered_packets=sum(one.confirmed for one in hosts),
        pending_packets=sum(one.pending for one in hosts),
        lost=_lost(one.lost for one in hosts),
        unstored_packets=unstored,
        missed_packets=missed,
        balanced=all(_balanced(name, answer) for answer in answers),
    )


def _balanced(name: str, answer: TapsAnswer) -> bool:
    points, past, streams = _parts(name, answer)
    matched = sum(point.matched for point in (*points, *past))
    written = sum(point.written for point in (*points, *past))
    unwritten = sum(sum(point.lost.values()) for point in (*points, *past))
    handed = sum(s.pending + s.unanswered + s.confirmed + sum(s.lost.values()) for s in streams)
    return matched == written + unwritten and written == handed
