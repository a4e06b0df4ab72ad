"""Flow records to real collectors, from a whole server: exactly what was stored, and nobody waits for it."""

import asyncio
import json
import re
import shutil
import socket
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from eastwest.bus.messages import FLOWS
from eastwest.export import ipfix
from eastwest.export.config import ExportConfig, IpfixConfig
from eastwest.export.exporter import ExporterStatus
from tests.conftest import require, run
from tests.system.bus_server import until
from tests.system.fake_probe import FakeProbe, flow_rows, workload
from tests.system.flow_collectors import free_port, nfacctd, nfcapd, nfdump, pmacct, stopped_at_last
from tests.system.server_site import ALL, Site, site


def _to(port: int, scheme: str = "udp", **other: int) -> ExportConfig:
    return ExportConfig(ipfix=IpfixConfig(collector=f"{scheme}://127.0.0.1:{port}", **other))


def _status(s: Site) -> ExporterStatus:
    status = s.exporter.status
    assert status is not None
    assert status.records + status.pending + sum(status.lost.values()) <= s.collector.status.stored_rows
    return status


async def _sent(s: Site, records: int) -> None:
    async def all_of_them() -> bool:
        return _status(s).records == records

    await until(all_of_them, 60)


def test_nfdump_reads_exactly_what_was_stored(tmp_path: Path) -> None:
    """Two hosts, every kind of flow, a message repeated and one malformed: records, packets and bytes are the
    store's, and no sequence number is missed."""

    async def scenario() -> None:
        port = free_port(socket.SOCK_DGRAM)
        collector = nfcapd(tmp_path / "nfcapd", port)
        with stopped_at_last(collector):
            await collector.start()
            async with site(tmp_path, export=_to(port)) as s:
                one, two = FakeProbe(s.probe_bus), FakeProbe(s.probe_bus, host="other")
                rows = flow_rows(list(range(1, 301)), list(range(1001, 1301)))
                rows["protocol"] = np.resize([6, 17, 1, 132, 0x0806], 300)
                rows["src"][::3] = rows["dst"][::3] = np.void(bytes.fromhex("20010db8" + "0" * 23 + "1"))
                await one.send(FLOWS, rows.tobytes())
                client = await s.probe_bus.connection()
                for sequence in ("1", "x"):
                    told = {"Ew-Host": "h", "Ew-Boot": "1", "Ew-Sequence": sequence}
                    await client.jetstream().publish(f"{FLOWS}.h", rows.tobytes(), headers=told)
                await two.flows([1, 2], [5, 6])
                await s.settled(4)
                await _sent(s, 302)
                stored = await s.get("flows", **ALL)
                metrics = (await s.api.get("/metrics")).text
                assert "\neastwest_ipfix_records_total 302.0\n" in metrics
                assert '\neastwest_ipfix_lost_records_total{place="queue_full"} 0.0\n' in metrics
                assert "\neastwest_ipfix_up 1.0\n" in metrics
            collector.stop()
        read = nfdump(collector.directory)
        assert sum(flow["packets"] for flow in stored) == sum(range(1001, 1301)) + 11
        assert Counter((r["in_packets"], r["in_bytes"]) for r in read) == Counter(
            (flow["packets"], flow["bytes"]) for flow in stored
        )
        assert {r["proto"] for r in read} == {0, 1, 6, 17, 132}
        log = (collector.directory / "log").read_text()
        assert len(re.findall("New ipfix exporter", log)) == 2
        assert "Sequence Errors: 0, Bad Packets: 0" in log

    asyncio.run(scenario())


def test_pmacct_reads_label_service_and_class(tmp_path: Path) -> None:
    """The enterprise's elements come out as what was labelled, for workloads known before the server's start
    and after it."""

    async def scenario() -> None:
        port = free_port(socket.SOCK_DGRAM)
        collector = nfacctd(tmp_path / "nfacctd", port)
        async with site(tmp_path) as s:
            await FakeProbe(s.probe_bus).workloads(workload(1, "early", service_id=11))
            await s.settled(1)
        with stopped_at_last(collector):
            await collector.start()
            async with site(tmp_path, export=_to(port)) as s:
                probe = FakeProbe(s.probe_bus, boot=2)
                await probe.workloads(workload(2_000_000_000, "late", service_id=4_000_000_000))
                rows = flow_rows([1, 2_000_000_000, 3], [10, 20, 30])
                rows["class"][1] = 1
                await probe.send(FLOWS, rows.tobytes())
                await s.settled(2)
                await _sent(s, 3)

            async def written() -> bool:
                return len(pmacct(collector.directory)) == 3

            await until(written, 60)
            collector.stop()
        assert {
            (int(r["ew_label"]), int(r["ew_service"]), int(r["ew_class"]), r["packets"], r["bytes"])
            for r in pmacct(collector.directory)
        } == {(1, 11, 0, 10, 1000), (2_000_000_000, 4_000_000_000, 1, 20, 2000), (3, 0, 0, 30, 3000)}
        assert "malformed" not in (collector.directory / "log").read_text()

    asyncio.run(scenario())


def test_collector_that_is_away_gets_it_later(tmp_path: Path) -> None:
    """Absent at first: all waits and then arrives. Killed: what was on its way is lost and counted, the rest
    waits again. Storing never stops, and health says what is wrong."""

    async def scenario() -> None:
        port = free_port(socket.SOCK_DGRAM)
        first, second = (nfcapd(tmp_path / name, port) for name in ("first", "second"))
        with stopped_at_last(first, second):
            async with site(tmp_path, export=_to(port)) as s:
                probe = FakeProbe(s.probe_bus)

                async def told() -> bool:
                    return any(
                        "no flow records can be sent" in p for p in (await s.get("health"))["problems"]
                    )

                await probe.flows(list(range(100)), [1] * 100)
                await s.settled(1)
                await until(told)
                status = _status(s)
                assert (status.records, status.pending, sum(status.lost.values())) == (0, 100, 0)
                await first.start()
                await _sent(s, 100)
                assert (await s.get("health"))["status"] == "ok"
                first.stop()
                await probe.flows(list(range(100)), [1] * 100)
                await s.settled(2)
                await until(told)
                await second.start()
                await _sent(s, 200)
                refused = _status(s).refused_datagrams
                assert s.collector.status.stored_rows == 200
            second.stop()
        assert len(nfdump(first.directory)) == 100
        lost = 100 - len(nfdump(second.directory))
        room = (1400 - 20) // ipfix.record(256).itemsize
        assert refused >= 1 and lost >= refused * room and lost % room == 0

    asyncio.run(scenario())


async def _read(messages: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """IPFIX messages from a stream, until it ends."""
    with suppress(asyncio.IncompleteReadError, ConnectionResetError):
        while True:
            header = await reader.readexactly(4)
            messages.append(header + await reader.readexactly(int.from_bytes(header[2:], "big") - 4))
    writer.close()


def _dissected(directory: Path, messages: list[bytes]) -> list[dict[str, list[str]]]:
    """The messages as Wireshark's dissector reads them from a stream."""
    require(shutil.which("tshark"), "needs tshark: apt-get install tshark")
    lines = (f"0000 {message.hex(' ')}\n" for message in messages)
    (directory / "stream.hex").write_text("".join(lines))
    pcap = str(directory / "stream.pcap")
    run("text2pcap", "-q", "-T", "4739,4739", str(directory / "stream.hex"), pcap)
    fields = (
        "cflow.sequence",
        "cflow.packets",
        "cflow.octets",
        "cflow.srcaddr",
        "_ws.expert",
        "_ws.malformed",
    )
    told = [part for field in fields for part in ("-e", field)]
    output = run("tshark", "-r", pcap, "-d", "tcp.port==4739,cflow", "-T", "json", *told)
    return [packet["_source"]["layers"] for packet in json.loads(output)]


def test_stream_is_read_by_wireshark(tmp_path: Path) -> None:
    """Over TCP: templates once, long messages, sequence numbers that count records; nothing malformed."""

    async def scenario() -> None:
        messages: list[bytes] = []
        server = await asyncio.start_server(partial(_read, messages), "127.0.0.1", 0)
        async with server, site(tmp_path, export=_to(server.sockets[0].getsockname()[1], "tcp")) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.flows(list(range(2000)), list(range(2000)))
            await s.settled(1)
            await _sent(s, 2000)
        sizes = [len(message) for message in messages]
        room = (65_000 - 20) // ipfix.record(256).itemsize
        assert len(sizes) == 1 + -(-2000 // room) and max(sizes) <= 65_000
        read = _dissected(tmp_path, messages)
        packets = [int(n) for layers in read for n in layers.get("cflow.packets", [])]
        assert packets == list(range(2000))
        assert sum(int(n) for layers in read for n in layers.get("cflow.octets", [])) == 100 * sum(packets)
        assert [int(layers["cflow.sequence"][0]) for layers in read] == [
            0, *(4 + room * n for n in range(len(sizes) - 1)),
        ]  # fmt: skip
        assert not any("_ws.malformed" in layers for layers in read)

    asyncio.run(scenario())


def test_collector_that_does_not_read_loses_only_its_own(tmp_path: Path) -> None:
    """Its queue fills, what does not fit is counted, and all is stored meanwhile. After it has broken the
    connection the rest goes to its next one, and nothing goes twice."""

    async def scenario() -> None:
        messages: list[bytes] = []
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        export = _to(listening.getsockname()[1], "tcp", queue_bytes=1 << 20)
        async with site(tmp_path, export=export) as s:
            lazy, _ = await asyncio.get_running_loop().sock_accept(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            server = await asyncio.start_server(partial(_read, messages), sock=listening)
            probe = FakeProbe(s.probe_bus)
            each, count = 4000, 40
            for n in range(count):
                await probe.flows(list(range(n * each, (n + 1) * each)), [1] * each)
            await s.settled(count)
            offered = each * count
            assert s.collector.status.stored_rows == offered
            status = _status(s)
            assert status.lost["queue_full"] > 0 and status.lost["queue_full"] % each == 0
            assert status.pending > 0
            assert status.records + status.pending + sum(status.lost.values()) == offered
            lazy.close()

            async def drained() -> bool:
                return _status(s).pending == 0

            await until(drained, 60)  # before, the queue might have no room
            await probe.flows(list(range(offered, offered + each)), [1] * each)
            await s.settled(count + 1)
            await until(drained, 60)
            status = _status(s)
            assert status.lost["unacknowledged"] > 0 and status.lost["stopped"] == 0
            assert status.records + sum(status.lost.values()) == offered + each
        server.close()
        labels = [
            label
            for message in messages
            if message[16:18] == (256).to_bytes(2, "big")
            for label in np.frombuffer(message[20:], ipfix.record(256))["12"].tolist()
        ]
        # The first one's host has acknowledged some that nobody read.
        assert each <= len(labels) <= status.records
        assert len(labels) == len(set(labels)) and set(range(offered, offered + each)) <= set(labels)

    asyncio.run(scenario())


def test_what_waits_at_the_end_is_counted(tmp_path: Path) -> None:
    """Stopped while its collector is away, the server ends at once and says how many records it leaves."""

    async def scenario() -> None:
        async with site(tmp_path, export=_to(free_port(socket.SOCK_DGRAM))) as s:
            await FakeProbe(s.probe_bus).flows(list(range(50)), [1] * 50)
            await s.settled(1)
        status = _status(s)
        assert (status.records, status.pending, status.lost["stopped"]) == (0, 0, 50)

    asyncio.run(scenario())
