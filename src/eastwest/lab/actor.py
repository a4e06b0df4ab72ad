"""What runs inside a workload of the lab: it joins its place, then talks and counts what it says.

Runs by path under `python -I -S`, standard library only: a lab has six of these and they must start fast.
It obeys its parent, one JSON document per line on stdin, one JSON answer per line on stdout, and ends when
stdin does, so that a lab whose owner was killed leaves no process. What it reports is what its own code
sent and what `TCP_INFO` says of its sockets; no hook of eastwest has a part in it.
"""

import asyncio
import contextlib
import fcntl
import json
import socket
import struct
import sys
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

TCP_INFO_SIZE = 232
UDP_HEADERS = 28
"""IPv4 and UDP, no options."""
ANSWER_TIMEOUT = 2.0
SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x17
RECEIVE_BUFFER = 1 << 20

Address = tuple[str, int]


def tcp_facts(connection: socket.socket) -> dict[str, int]:
    """What the kernel says of one connection, under the names of `struct tcp_info`."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    if len(info) < 228:
        raise OSError("this kernel's TCP_INFO does not count the bytes sent (Linux 4.19 does)")
    unread = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)))[0]
    segs_out, segs_in, notsent = struct.unpack_from("III", info, 136)
    bytes_sent, bytes_retrans, dsack_dups = struct.unpack_from("QQI", info, 200)
    return {
        "options": info[5],
        "unacked": struct.unpack_from("I", info, 24)[0],
        "segs_out": segs_out,
        "segs_in": segs_in,
        "notsent": notsent,
        "bytes_sent": bytes_sent,
        "bytes_received": struct.unpack_from("Q", info, 128)[0],
        "bytes_retrans": bytes_retrans,
        "dsack_dups": dsack_dups,
        "rcv_ooopack": struct.unpack_from("I", info, 224)[0],
        "unread": unread,
    }


class TcpEnd:
    """One end of a connection that stays open as long as the lab."""

    def __init__(self, kind: str, active: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.kind, self.active, self.reader, self.writer = kind, active, reader, writer
        self.socket: socket.socket = writer.get_extra_info("socket")
        self.local: Address = self.socket.getsockname()
        self.peer: Address = self.socket.getpeername()

    def report(self) -> dict[str, Any]:
        facts = tcp_facts(self.socket)
        facts["unwritten"] = self.writer.transport.get_write_buffer_size()
        names = {"kind": self.kind, "protocol": 6, "active": self.active, "local": self.local}
        return {**names, "peer": self.peer, "tcp": facts}


class UdpEnd:
    """One UDP socket, which counts per peer; a packet is counted when the kernel has taken it."""

    def __init__(self, kind: str, address: Address, answer: Callable[[bytes], bytes] | None = None) -> None:
        self.kind, self.answer = kind, answer
        self.counts: dict[Address, list[int]] = {}
        self.arrived = asyncio.Event()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.socket.bind(address)
        self.local: Address = self.socket.getsockname()
        asyncio.get_running_loop().add_reader(self.socket, self.readable)

    def readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, peer = self.socket.recvfrom(65535)
                count = self.counts.setdefault(peer, [0, 0, 0, 0])
                count[2] += 1
                count[3] += len(data) + UDP_HEADERS
                self.arrived.set()
                if self.answer is not None:
                    self.send(self.answer(data), peer)

    def send(self, data: bytes, to: Address) -> None:
        count = self.counts.setdefault(to, [0, 0, 0, 0])
        with contextlib.suppress(BlockingIOError):
            self.socket.sendto(data, to)
            count[0] += 1
            count[1] += len(data) + UDP_HEADERS

    def report(self) -> list[dict[str, Any]]:
        names = {"kind": self.kind, "protocol": 17, "local": self.local}
        return [{**names, "peer": peer, "udp": count} for peer, count in self.counts.items()]


def dns_question(number: int, name: str) -> bytes:
    """A query for the IPv4 address of `name` (RFC 1035, 4)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def dns_answer(question: bytes) -> bytes:
    """The answer to such a query: one A record, its name a pointer to the question."""
    header = struct.pack("!2s5H", question[:2], 0x8580, 1, 1, 0, 0)
    record = struct.pack("!3HIH4s", 0xC00C, 1, 1, 60, 4, socket.inet_aton("10.0.0.2"))
    return header + question[12:] + record


def http_answer(path: str) -> bytes:
    """The page at `/<size>`: that many bytes."""
    body = b"." * int(path.lstrip("/"))
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Actor:
    """Everything that one workload says and hears."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.tcp: list[TcpEnd] = []
        self.udp: list[UdpEnd] = []
        self.servers: list[asyncio.Server] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.rounds: dict[str, Callable[[], Awaitable[None]]] = {}
        self.flows: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.busy = 0

    # ---- what a server does

    async def listen(self, offers: list[dict[str, Any]]) -> dict[str, int]:
        """Open the server sockets; answers kind → port."""
        ports: dict[str, int] = {}
        for offer in offers:
            kind, address = offer["kind"], (offer["address"], offer["port"])
            if kind in ("dns", "udp"):
                self.udp.append(UdpEnd(kind, address, dns_answer if kind == "dns" else None))
                ports[kind] = self.udp[-1].local[1]
            else:
                ports[kind] = await self.tcp_server(kind, address, offer.get("segment", 0))
        return ports

    async def tcp_server(self, kind: str, address: Address, segment: int) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            end = TcpEnd(kind, False, reader, writer)
            self.tcp.append(end)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await (self.serve_pages(end) if kind == "http" else self.swallow(end))

        listener = tcp_socket(address, segment)
        server = await asyncio.start_server(serve, sock=listener)
        self.servers.append(server)
        return int(listener.getsockname()[1])

    async def serve_pages(self, end: TcpEnd) -> None:
        while True:
            request = await end.reader.readuntil(b"\r\n\r\n")
            end.writer.write(http_answer(request.split(b" ", 2)[1].decode()))

    async def swallow(self, end: TcpEnd) -> None:
        while await end.reader.read(1 << 18):
            pass

    # ---- what a client does

    async def connect(self, flow: dict[str, Any]) -> None:
        """Open the flow's socket and say how one round of it goes."""
        local, peer = (flow["address"], flow["port"]), (flow["to"], flow["to_port"])
        kind, size = flow["kind"], flow["size"]
        if kind in ("dns", "udp"):
            end = UdpEnd(kind, local)
            self.udp.append(end)
            self.rounds[kind] = (
                self.dns_round(end, peer) if kind == "dns" else self.udp_round(end, peer, size)
            )
            return
        connection = tcp_socket(local, flow.get("segment", 0))
        await asyncio.get_running_loop().sock_connect(connection, peer)
        stream = TcpEnd(kind, True, *await asyncio.open_connection(sock=connection))
        self.tcp.append(stream)
        self.rounds[kind] = self.http_round(stream, size) if kind == "http" else self.bulk_round(stream, size)

    def http_round(self, end: TcpEnd, size: int) -> Callable[[], Awaitable[None]]:
        async def get() -> None:
            end.writer.write(f"GET /{size} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
            head = await end.reader.readuntil(b"\r\n\r\n")
            await end.reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))

        return get

    def bulk_round(self, end: TcpEnd, size: int) -> Callable[[], Awaitable[None]]:
        chunk = bytes(size)

        async def push() -> None:
            end.writer.write(chunk)
            await end.writer.drain()

        return push

    def udp_round(self, end: UdpEnd, peer: Address, size: int) -> Callable[[], Awaitable[None]]:
        payload = bytes(size)

        async def say() -> None:
            end.send(payload, peer)

        return say

    def dns_round(self, end: UdpEnd, peer: Address) -> Callable[[], Awaitable[None]]:
        async def ask() -> None:
            end.arrived.clear()
            end.send(dns_question(end.counts.get(peer, [0])[0], "web.lab.example"), peer)
            # A lost answer is no reason to stop: the counts say that it was lost.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(end.arrived.wait(), ANSWER_TIMEOUT)

        return ask

    # ---- what the parent orders

    async def start(self) -> None:
        for flow in self.flows:
            if flow["kind"] not in self.rounds:
                await self.connect(flow)

    async def run(self) -> None:
        await self.start()
        self.gate.set()
        if not self.tasks:
            self.tasks = [asyncio.create_task(self.keep(flow)) for flow in self.flows]

    async def keep(self, flow: dict[str, Any]) -> None:
        """One round each interval while the gate is open; a pause never cuts a round in two."""
        while True:
            await self.gate.wait()
            self.busy += 1
            try:
                await self.rounds[flow["kind"]]()
            finally:
                self.busy -= 1
            await asyncio.sleep(flow["interval"])

    async def send(self, kind: str, count: int) -> None:
        await self.start()
        for _ in range(count if kind in self.rounds else 0):
            await self.rounds[kind]()

    def report(self) -> dict[str, Any]:
        flows = [end.report() for end in self.tcp] + [flow for end in self.udp for flow in end.report()]
        return {"busy": self.busy, "interface": interface_counters(self.interface), "flows": flows}

    async def obey(self, order: dict[str, Any]) -> Any:
        match order["do"]:
            case "listen":
                return await self.listen(order["offers"])
            case "hello":
                pass
            case "plan":
                self.flows = order["flows"]
            case "start":
                await self.start()
            case "run":
                await self.run()
            case "pause":
                self.gate.clear()
            case "send":
                await self.send(order["kind"], order["count"])
            case "report":
                return self.report()
            case "offload-off":
                checksum_offload_off(self.interface)
            case other:
                raise ValueError(f"unknown order {other!r}")
        return None


def tcp_socket(address: Address, segment: int) -> socket.socket:
    """A non-blocking socket bound to `address`. `segment`: a small MSS makes super-packets even over lo."""
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if segment:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
    made.bind(address)
    return made


def interface_counters(interface: str) -> dict[str, int] | None:
    """What `interface` counted; not from sysfs, which shows the network namespace that mounted it."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if interface and name.strip() == interface:
            values = [int(number) for number in numbers.split()]
            named = zip(("rx_bytes", "rx_packets", "rx_errors", "rx_dropped"), values[:4], strict=True)
            return {**dict(named), "tx_bytes": values[8], "tx_packets": values[9], "tx_dropped": values[11]}
    return None


def checksum_offload_off(name: str) -> None:
    """Userspace Open vSwitch passes unfinished checksums on as they are; so the guest finishes its own."""
    import array

    value = array.array("I", [ETHTOOL_STXCSUM, 0])
    request = struct.pack("16sP", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        fcntl.ioctl(door, SIOCETHTOOL, request.ljust(40, b"\0"))


def settle_in(place: dict[str, Any]) -> None:
    """Be in the cgroup, and on a quiet network, before there is any socket."""
    if place.get("cgroup"):
        (Path(place["cgroup"]) / "cgroup.procs").write_text("0")
    for name, value in place.get("sysctl", {}).items():
        Path("/proc/sys", name).write_text(value)


async def main(place: dict[str, Any]) -> None:
    actor = Actor(place.get("interface", ""))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        try:
            reply = {"ok": await actor.obey(json.loads(line))}
        except (OSError, ValueError, KeyError, EOFError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        settle_in(json.loads(sys.argv[1]))
        asyncio.run(main(json.loads(sys.argv[1])))
