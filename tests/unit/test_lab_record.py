"""The arithmetic of the record, on facts that a capture has confirmed."""

import msgspec
import pytest

from eastwest.lab.record import (
    ActorReport,
    Ends,
    InterfaceCounters,
    TcpFacts,
    Unsettled,
    pair_record,
    seen_outside,
    sent,
    workload_record,
)

CLIENT, SERVER = ("10.0.0.1", 40080), ("10.0.0.2", 80)
FACTS = TcpFacts(
    options=7,
    unacked=0,
    segs_out=2,
    segs_in=1,
    notsent=0,
    bytes_sent=0,
    bytes_received=0,
    bytes_retrans=0,
    dsack_dups=0,
    rcv_ooopack=0,
    unread=0,
    unwritten=0,
)


def ends(client: TcpFacts, server: TcpFacts) -> tuple[Ends, Ends]:
    return (
        Ends("http", 6, CLIENT, SERVER, active=True, tcp=client),
        Ends("http", 6, SERVER, CLIENT, tcp=server),
    )


def change(facts: TcpFacts, **fields: int) -> TcpFacts:
    return msgspec.structs.replace(facts, **fields)


HANDSHAKE = ends(FACTS, change(FACTS, segs_out=0, segs_in=2))


def report(*flows: Ends, interface: InterfaceCounters | None = None, busy: int = 0) -> ActorReport:
    return ActorReport(busy, interface, list(flows))


def test_a_handshake_is_two_packets_one_way_and_one_the_other() -> None:
    """SYN 60 + ACK 52 bytes; the SYN-ACK of 60 bytes is in no counter of its sender."""
    client, server = HANDSHAKE
    assert sent(client, server) == (2, 112)
    assert sent(server, client) == (1, 60)


@pytest.mark.parametrize(
    ("options", "octets"),
    [(0, 44), (1, 56), (2, 48), (3, 56), (4, 48), (5, 60), (6, 52), (7, 60)],
)
def test_the_size_of_a_syn_follows_from_what_was_agreed(options: int, octets: int) -> None:
    """MSS always; timestamps, SACK permitted and window scale where they are on, padded as Linux does."""
    client, server = ends(change(FACTS, options=options, segs_out=1), FACTS)
    assert sent(client, server) == (1, octets)


def test_payload_and_duplicates_count() -> None:
    """10 segments with 9,000 bytes in all; that a duplicate came costs its receiver 12 bytes to say."""
    client, server = ends(change(FACTS, segs_out=10, bytes_sent=9000, dsack_dups=1), FACTS)
    assert sent(client, server) == (10, 60 + 9 * 52 + 9000)
    assert sent(server, client)[1] == 60 + 2 * 52 + 12


def test_a_pair_that_agrees_is_recorded_on_both_sides() -> None:
    """What one sends the other receives, and a guest's interface has counted just that."""
    udp = Ends("udp", 17, ("10.0.0.1", 5), ("10.0.0.2", 6), udp=(3, 300, 0, 0))
    heard = Ends("udp", 17, ("10.0.0.2", 6), ("10.0.0.1", 5), udp=(0, 0, 3, 300))
    interface = InterfaceCounters(60 + 14, 1, 0, 0, 412 + 5 * 14, 5, 0)
    mine, theirs = report(HANDSHAKE[0], udp, interface=interface), report(HANDSHAKE[1], heard)
    client, server = pair_record(("c", "s"), (mine, theirs))
    assert (client.ingress_packets, client.ingress_bytes) == (1, 60)
    assert (client.egress_packets, client.egress_bytes) == (5, 412)
    assert (server.ingress_packets, server.ingress_bytes) == (5, 412)
    assert [(flow.direction, flow.protocol, flow.packets) for flow in server.flows] == [
        ("ingress", 6, 2),
        ("egress", 6, 1),
        ("ingress", 17, 3),
    ]


@pytest.mark.parametrize(
    ("client", "server", "why"),
    [
        (change(FACTS, unacked=1), FACTS, "not acknowledged"),
        (FACTS, change(FACTS, segs_out=0, segs_in=1), "2 segments sent, 1 received"),
        (FACTS, change(FACTS, segs_out=0, segs_in=2, unread=7), "7 bytes unread"),
        (FACTS, change(FACTS, segs_out=0, segs_in=2, rcv_ooopack=1), "out of order"),
    ],
)
def test_what_is_not_final_is_not_recorded(client: TcpFacts, server: TcpFacts, why: str) -> None:
    """The reason is named."""
    mine, theirs = ends(client, server)
    with pytest.raises(Unsettled, match=why):
        pair_record(("c", "s"), (report(mine), report(theirs)))


def test_an_interface_that_counted_more_is_a_surprise() -> None:
    """One frame that no sender knows of: the record is refused."""
    interface = InterfaceCounters(60 + 42 + 28, 2, 0, 0, 112 + 28, 2, 0)
    with pytest.raises(Unsettled, match="its interface counted"):
        pair_record(("c", "s"), (report(HANDSHAKE[0], interface=interface), report(HANDSHAKE[1])))


def test_one_sided_flows_and_running_rounds_are_not_final() -> None:
    """A flow that only one end knows is in flight, or lost."""
    for mine, theirs, why in (
        (report(HANDSHAKE[0]), report(), "nothing has arrived"),
        (report(), report(HANDSHAKE[1]), "one end only"),
        (report(busy=1), report(), "still going on"),
    ):
        with pytest.raises(Unsettled, match=why):
            pair_record(("c", "s"), (mine, theirs))


def test_a_silent_flow_is_no_flow() -> None:
    """A socket that nothing was sent on leaves no entry."""
    assert workload_record("w", []).flows == []


GUEST, GATEWAY, OUTSIDE, LISTENS = ("10.0.2.15", 9), ("10.0.2.2", 7), ("127.0.0.1", 50000), ("127.0.0.1", 7)


def test_what_a_vm_sent_is_recorded_under_the_addresses_of_the_host() -> None:
    """Its counts are its own; where it says less than has arrived, the record does not settle."""
    outside = report(Ends("udp", 17, LISTENS, OUTSIDE, udp=(0, 0, 3, 300)))
    for packets in (2, 3):
        guest = report(Ends("udp", 17, GUEST, GATEWAY, udp=(packets, packets * 100, 0, 0)))
        seen = seen_outside(guest, outside)
        assert seen == report(Ends("udp", 17, OUTSIDE, LISTENS, udp=(packets, packets * 100, 0, 0)))
        if packets == 2:
            with pytest.raises(Unsettled, match="2 packets sent, 3 received"):
                pair_record(("vm", "dns"), (seen, outside))
    vm, dns = pair_record(("vm", "dns"), (seen, outside))
    assert (vm.egress_packets, vm.egress_bytes, dns.ingress_packets, dns.ingress_bytes) == (3, 300, 3, 300)


def test_a_vm_that_is_heard_from_nowhere_or_two_places_is_not_settled() -> None:
    """Nobody could say which of them is meant."""
    guest = report(Ends("udp", 17, GUEST, GATEWAY, udp=(1, 100, 0, 0)))
    places = [Ends("udp", 17, LISTENS, ("127.0.0.1", port), udp=(0, 0, 1, 100)) for port in (1, 2)]
    for count in (0, 2):
        with pytest.raises(Unsettled, match=f"from {count} addresses"):
            seen_outside(guest, report(*places[:count]))
