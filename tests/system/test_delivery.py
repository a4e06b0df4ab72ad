"""Copies on their way: whoever stops, stalls, breaks or lies, each packet arrives or is a named loss."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from eastwest.bus.taps import TapPoint, TapStream
from eastwest.kernel.netns import inside
from eastwest.probe import copying
from eastwest.tap.config import TapConfig
from tests.conftest import Workload, require, run
from tests.system.bus_server import RunningServer
from tests.system.receiver import Receiver
from tests.system.tap_desk import site
from tests.system.test_probe import holds, with_server

ANY = {"selector": "kind=netns"}
APPLICATION = {**ANY, "receiver": "application", "key": ""}


async def send(workload: Workload, count: int, size: int = 72) -> None:
    """In a thread: a burst takes its time, and the probe of this process must have its own."""
    await asyncio.to_thread(workload.send, count, size)


def accounted(point: TapPoint, stream: TapStream) -> bool:
    """matched = written + losses; written = pending + unanswered + confirmed + losses."""
    assert point.matched == point.written + sum(point.lost.values())
    known = stream.pending + stream.unanswered + stream.confirmed
    return point.written == known + sum(stream.lost.values())


def test_a_broken_connection_comes_back_and_losses_are_named(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """The receiver hangs up twice: what it had not confirmed is an upper bound of what is missing."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await h.knows(one.name)
                await desk.order("web", receiver.to, **ANY)
                await desk.copying("web")
                for breaks in range(1, 3):
                    await send(one, 100)
                    await holds(lambda: receiver.streams[-1].count == 100)
                    await desk.becomes(lambda answer: answer.streams[0].unanswered == 0)
                    receiver.stall()
                    await send(one, 50)
                    await desk.becomes(lambda answer, n=50 * breaks: answer.streams[0].unanswered == 50)
                    receiver.hang_up()
                    receiver.go_on()
                    await holds(lambda n=breaks: len(receiver.streams) == n + 1)
                    await desk.copying("web")
                await send(one, 10)
                await holds(lambda: receiver.streams[-1].count == 10)
                await desk.take_back("web")
                point, stream = await desk.over("web")
            assert (point.matched, point.written) == (310, 310)
            assert (stream.confirmed, stream.lost, stream.reconnects) == (210, {"unconfirmed": 100}, 2)
            assert accounted(point, stream)
            assert [len(received.sections) for received in receiver.streams] == [1, 1, 1]

    with_server(tmp_path, test)


def test_nobody_there_at_first_then_all_is_delivered(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """The rings hold what comes before there is a receiver; the problem is said, and is gone with it."""

    async def test(server: RunningServer, state: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one:
                await h.knows(one.name)
                await desk.order("web", f"127.0.0.1:{port}", **ANY)
                await desk.becomes(lambda answer: answer.points and answer.streams[0].problem)
                await send(one, 70)
                stream = await desk.stream("web")
                assert (stream.pending, stream.confirmed, stream.connected) == (70, 0, False)
                assert f"not delivered to 127.0.0.1 port {port}" in stream.problem
                with Receiver(port=port) as receiver:
                    await holds(lambda: receiver.streams and receiver.streams[0].count == 70)
                    await desk.becomes(lambda answer: answer.streams[0].confirmed == 70)
                    assert (await desk.stream("web")).problem == ""

    with_server(tmp_path, test)


def test_a_tap_that_ends_unreachable_names_what_is_left(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Refused by its collector: nothing is confirmed, and every packet is in a named place at the end."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver() as receiver:
                receiver.refuses = True
                await h.knows(one.name)
                await desk.order("web", receiver.to, **ANY)
                answer = await desk.becomes(lambda answer: answer.points and answer.streams[0].problem)
                assert "refuses this tap" in answer.streams[0].problem
                await send(one, 40)
                await desk.take_back("web")
                point, stream = await desk.over("web")
            assert (point.matched, stream.confirmed, sum(stream.lost.values())) == (40, 0, 40)
            assert set(stream.lost) <= {"undelivered", "unconfirmed"}

    with_server(tmp_path, test)


def test_one_that_reads_nothing_takes_nothing_from_others(
    netns: Path, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stalled application's tap fills up and loses by name; the workload and the other tap lose nothing."""
    monkeypatch.setattr(copying, "_DRAIN_SECONDS", 2.0)

    async def test(server: RunningServer, state: Path) -> None:
        small = TapConfig(memory=1 << 20)
        async with site(server, state, netns=netns, cgroup_root=cgroup, tap=small) as (h, desk):
            with Workload(netns) as one, Receiver(confirms=False) as stalled, Receiver() as good:
                await h.knows(one.name)
                stalled.stall()
                await desk.order("stalled", stalled.to, **APPLICATION)
                await desk.order("good", good.to, **ANY, snaplen=64)
                await desk.copying("stalled")
                await desk.copying("good")
                sent = 0
                while not (await desk.point("stalled")).lost.get("buffer_full"):
                    await send(one, 500, 1400)
                    sent += 500
                await holds(lambda: good.streams[0].count == sent)
                await desk.take_back("stalled")
                point, stream = await desk.over("stalled")
                assert point.matched == sent
                assert accounted(point, stream)
                assert point.lost["buffer_full"] > 0
                await desk.take_back("good")
                point, stream = await desk.over("good")
                assert (point.matched, point.lost, stream.confirmed, stream.lost) == (sent, {}, sent, {})

    with_server(tmp_path, test)


def certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A receiver that is 127.0.0.1, and the certificate that says so."""
    require(shutil.which("openssl"), "needs openssl: apt-get install openssl")
    key, certificate = directory / "key.pem", directory / "cert.pem"
    names = ("-subj", "/CN=receiver", "-addext", "subjectAltName=IP:127.0.0.1")
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run(*made, "-days", "2", "-keyout", str(key), "-out", str(certificate), *names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.mark.parametrize("receiver_kind", ["collector", "application"])
def test_over_tls_every_packet_arrives(netns: Path, cgroup: Path, tmp_path: Path, receiver_kind: str) -> None:
    """Megabytes, confirmed or not, with an end that is said; whom nobody vouches for gets nothing."""
    context, ca_file = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    collects = receiver_kind == "collector"
    said = {"tls": True} | (ANY if collects else APPLICATION)

    async def test(server: RunningServer, state: Path) -> None:
        trusting = TapConfig(ca_file=ca_file)
        async with site(server, state, netns=netns, cgroup_root=cgroup, tap=trusting) as (h, desk):
            with (
                Workload(netns) as one,
                Receiver(confirms=collects, tls=context) as receiver,
                Receiver(tls=other) as impostor,
            ):
                await h.knows(one.name)
                await desk.order("web", receiver.to, **said)
                await desk.order("spied", impostor.to, **said)
                await desk.copying("web")
                answer = await desk.becomes(lambda answer: any(s.problem for s in answer.streams))
                assert [s.tap for s in answer.streams if "certificate" in s.problem] == ["spied"]
                await send(one, 4000, 1400)
                await desk.take_back("web")
                point, stream = await desk.over("web")
                assert impostor.streams == []
            assert (point.matched, point.lost, stream.confirmed, stream.lost) == (4000, {}, 4000, {})
            (received,) = receiver.streams
            assert received.ended
            assert len(received.packets) == 4000

    with_server(tmp_path, test)


def test_tshark_reads_what_an_application_gets(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Names, filter and frames, without the key; and every byte as it was sent."""
    require(shutil.which("tshark"), "needs tshark: make test installs it")

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver(confirms=False) as receiver:
                await h.knows(one.name)
                secret = {"receiver": "application", "key": "s3cret"}
                await desk.order("web", receiver.to, **ANY, **secret, filter="udp port 2000")
                await desk.copying("web")
                await send(one, 25, 300)
                await desk.take_back("web")
                _, stream = await desk.over("web")
            data = bytes(receiver.streams[0].data)
            assert len(data) == stream.sent_bytes
            assert b"s3cret" not in data
            file = tmp_path / "copy.pcapng"
            file.write_bytes(data)
            fields = ("frame.interface_name", "frame.interface_description", "udp.dstport", "data.len")
            wanted = [word for field in fields for word in ("-e", field)]
            table = run("tshark", "-r", str(file), "-T", "fields", *wanted).splitlines()
            assert table == [f"{one.port}\t{one.name} (host h)\t2000\t300"] * 25
            assert "udp port 2000" in run("capinfos", str(file))

    with_server(tmp_path, test)


_ECHO = """
import socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
server = socket.create_server(('127.0.0.1', 0))
print(server.getsockname()[1], flush=True)
while True:
    connected, _ = server.accept()
    got = 0
    while data := connected.recv(65536):
        got += len(data)
    print(got, flush=True)
"""


def test_a_tap_on_everything_does_not_feed_on_itself(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """The receiver is itself a workload on the host's network: no byte of its stream is copied to it.

    All is in the probe's own scope: the bus, the delivery, and the tapped traffic. What is copied is counted
    at the receiver, and does not grow by itself.
    """
    group = cgroup / "tool.scope"
    group.mkdir()

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            command = ("nsenter", f"--net={netns}", "python3", "-c", _ECHO, str(group))
            tool = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert tool.stdout
            try:
                port = int(tool.stdout.readline())
                with Workload(netns) as one:
                    await h.knows("tool")
                    await h.knows(one.name)
                    said = {"selector": "", "receiver": "application", "key": ""}
                    await desk.order("all", f"127.0.0.1:{port}", **said)
                    await desk.copying("all", 2)
                    await send(one, 200)
                    await desk.becomes(lambda answer: answer.streams[0].confirmed == 200)
                    at_tool = await desk.point("all", "")
                    await desk.take_back("all")
                    point, stream = await desk.over("all")
                    got = int(await asyncio.to_thread(tool.stdout.readline))
            finally:
                tool.kill()
                tool.wait()
                tool.stdout.close()
            assert (point.matched, stream.confirmed, got) == (200, 200, stream.sent_bytes)
            assert at_tool.matched == 0
            assert at_tool.own > 0
            assert point.own >= at_tool.own

    with inside(netns):
        with_server(tmp_path, test)
