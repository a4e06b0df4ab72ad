"""From a workload's packets to the collector's files, with nothing in between that is not the real thing."""

from pathlib import Path

import pytest

from eastwest.bus.client import Bus
from eastwest.collector.streamconfig import StreamsConfig
from eastwest.collector.streams import Streams
from tests.conftest import Workload
from tests.kernel import blocks
from tests.system.bus_server import RunningServer
from tests.system.tap_desk import site
from tests.system.test_delivery import send
from tests.system.test_probe import holds, with_server


def streams(directory: Path, bus: Bus, **settings: object) -> Streams:
    told = {"listen": "127.0.0.1:0", "path": directory, "min_free_bytes": 0} | settings
    return Streams(StreamsConfig(**told), bus)


@pytest.mark.parametrize("size", [72, 1400])
def test_what_a_workload_sent_is_in_the_file(netns: Path, cgroup: Path, tmp_path: Path, size: int) -> None:
    """Sent = matched = confirmed = in the files, each frame whole; and the tap's end is the stream's."""

    async def test(server: RunningServer, state: Path) -> None:
        async with (
            site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk),
            Bus(server.files.bus_config("server")) as bus,
            streams(tmp_path / "captures", bus) as collector,
        ):
            with Workload(netns) as one:
                label = await h.knows(one.name)
                await desk.order("web", collector.to, selector=f"name={one.name}")
                await desk.copying("web")
                await send(one, 3000, size)
                await desk.becomes(lambda answer: answer.streams[0].confirmed == 3000)
                await desk.take_back("web")
                point, stream = await desk.over("web")
            await holds(lambda: not any(status.connected for status in collector.status()))
            (status,) = collector.status()
        assert (point.matched, point.lost, stream.confirmed, stream.lost) == (3000, {}, 3000, {})
        assert (status.tap, status.host, status.packets, status.lost) == ("web", "h", 3000, {})
        (file,) = (tmp_path / "captures/web").glob("*.pcapng")
        (section,) = blocks.parse(file.read_bytes())
        assert [len(packet.data) for packet in section.packets] == [size + 42] * 3000
        assert {packet.custom[0] for packet in section.packets} == {label}
        assert status.bytes == 3000 * (size + 42)

    with_server(tmp_path, test)


def test_a_collector_that_starts_again_goes_on(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Gone for a while, at the same port: what came meanwhile waits in the buffers and is delivered."""

    async def test(server: RunningServer, state: Path) -> None:
        async with (
            site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk),
            Bus(server.files.bus_config("server")) as bus,
        ):
            with Workload(netns) as one:
                await h.knows(one.name)
                async with streams(tmp_path / "captures", bus) as collector:
                    to = collector.to
                    await desk.order("web", to, selector=f"name={one.name}")
                    await desk.copying("web")
                    await send(one, 500)
                    await desk.becomes(lambda answer: answer.streams[0].confirmed == 500)
                await desk.becomes(lambda answer: not answer.streams[0].connected)
                await send(one, 700)
                async with streams(tmp_path / "captures", bus, listen=to):
                    await desk.becomes(lambda answer: answer.streams[0].confirmed == 1200)
                    await desk.take_back("web")
                    point, stream = await desk.over("web")
        assert (point.matched, stream.confirmed, stream.lost, stream.reconnects) == (1200, 1200, {}, 1)
        sections = [blocks.parse(file.read_bytes()) for file in (tmp_path / "captures/web").glob("*.pcapng")]
        assert sorted(len(section.packets) for file in sections for section in file) == [500, 700]

    with_server(tmp_path, test)
