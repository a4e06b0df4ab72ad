"""Packets of eastwest's own connections: told by address and port, in either direction, and nothing else."""

from eastwest.kernel import trial
from eastwest.tap.taps import Point, Taps
from tests.kernel.frames import ethernet, extension, ipv4, ipv6, tcp, udp
from tests.kernel.tapping import LABEL, Tool

LO = 1
IPV4, IPV6, VLAN, HOP_BY_HOP, TCP, UDP = 0x0800, 0x86DD, 0x8100, 0, 6, 17

OWN = [
    ethernet(ipv4(tcp(src=1000, dst=8471), TCP), IPV4),
    ethernet(ipv4(tcp(b"x" * 1400, src=1000, dst=8471), TCP, options=bytes(8)), IPV4),
    ethernet(ipv4(tcp(src=8472, dst=1000), TCP), IPV4),
    ethernet(ipv4(tcp(src=1000, dst=8471), TCP), IPV4, tags=((VLAN, 7),)),
    ethernet(ipv6(tcp(src=1000, dst=8473), TCP), IPV6),
    ethernet(ipv6(extension(TCP) + tcp(src=1000, dst=8473), HOP_BY_HOP), IPV6),
    ethernet(ipv6(tcp(src=8474, dst=1000), TCP), IPV6),
]
OTHERS = [
    ethernet(ipv4(udp(src=1000, dst=8471), UDP), IPV4),
    ethernet(ipv4(tcp(src=8471, dst=1000), TCP), IPV4),  # the other end has this port
    ethernet(ipv4(tcp(src=1000, dst=8472), TCP), IPV4),
    ethernet(ipv4(tcp(src=1000, dst=8473), TCP), IPV4),
    ethernet(ipv6(tcp(src=1000, dst=8471), TCP), IPV6),
    ethernet(ipv4(tcp(src=1000, dst=8471)[:8], TCP), IPV4),  # cut short: it has no port that can be told
    ethernet(ipv4(tcp(src=1000, dst=8471), TCP, fragment=7), IPV4),
    ethernet(b"\x01" * 46, 0x0806),
]
ENDS = [("10.0.0.2", 8471), ("10.0.0.1", 8472), ("fd00::2", 8473), ("fd00::1%lo", 8474)]


def test_own_connections_are_left_out_and_counted_apart(taps: Taps) -> None:
    """IPv4 and IPv6, tagged and not, with options: not copied; whatever only resembles them is."""
    tool = Tool(taps)
    taps.set_port(LO, Point(LABEL, [tool.order(5)]))
    taps.leave_out(ENDS)
    for direction in ("ingress", "egress"):
        for frame in OWN + OTHERS:
            trial.run(taps.program(f"tap_port_{direction}"), frame, ifindex=LO)
    assert [packet.data for packet in tool.packets()] == OTHERS * 2
    count = taps.count(5)
    assert (count["own"], count["matched"]) == (2 * len(OWN), 2 * len(OTHERS))
    taps.leave_out(ENDS[:1])
    tool.stream.clear()
    tool.reader.start(tool.take)
    for frame in OWN:
        trial.run(taps.program("tap_port_ingress"), frame, ifindex=LO)
    assert [packet.data for packet in tool.packets()] == [OWN[2], *OWN[4:]]
