"""A probe that is killed with `kill -9` while it copies: nothing is stuck, and every packet has a place."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from eastwest.bus.client import Bus
from eastwest.meter import pins
from tests.conftest import Workload, run
from tests.system.bus_server import RunningServer, running
from tests.system.receiver import Receiver
from tests.system.tap_desk import Desk
from tests.system.test_probe import holds


class Process:
    """A probe in a process of its own."""

    def __init__(self, server: RunningServer, state: Path, **settings: object) -> None:
        bus = server.files.bus_config("probe")
        self._config = state.with_suffix(".toml")
        self._config.write_text(
            '[probe]\nhost = "h"\ninterval_seconds = 0.2\n'
            + "".join(f'{name} = "{value}"\n' for name, value in settings.items())
            + f'state_dir = "{state}"\n[bus]\nurl = "{bus.url}"\nuser = "{bus.user}"\n'
            f'password_file = "{bus.password_file}"\n[inventory]\npodman = ""\ndocker = ""\nlibvirt = ""\n'
            'openvswitch = ""\nqemu = false\n'
        )
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "eastwest", "probe", "--config", str(self._config)]
        self.process = subprocess.Popen(command)
        return self.process

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait()


@asynccontextmanager
async def killable(directory: Path, **settings: object) -> AsyncIterator[tuple[Process, Desk]]:
    with running(directory / "nats") as server:
        async with Bus(server.files.bus_config("server")) as bus:
            probe = Process(server, directory / "state", **settings)
            try:
                yield probe, Desk(bus)
            finally:
                probe.end(signal.SIGTERM)
                pins.remove(directory / "state")


def test_what_a_killed_probe_had_not_delivered_is_named(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """100 confirmed, 50 sent and 0 answered, killed: the next one says so, copies on, and nothing is left."""

    async def test() -> None:
        async with killable(tmp_path, netns=netns, cgroup_root=cgroup) as (probe, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await desk.order("web", receiver.to, selector=f"name={one.name}")
                await desk.copying("web")
                one.send(100)
                await desk.becomes(lambda answer: answer.streams[0].confirmed == 100)
                receiver.stall()
                one.send(50)
                await desk.becomes(lambda answer: answer.streams[0].unanswered == 50)
                probe.end(signal.SIGKILL)
                one.send(1000)  # nobody copies these, and nobody counts them
                receiver.go_on()
                probe.start()
                await desk.copying("web")
                one.send(30)
                answer = await desk.becomes(lambda answer: answer.streams[0].confirmed == 30)
                (point,), (stream,) = answer.past, answer.past_streams
                assert (point.tap, point.matched, point.written, point.lost) == ("web", 150, 150, {})
                assert (stream.tap, stream.confirmed, stream.lost) == ("web", 100, {"probe_killed": 50})
                await desk.take_back("web")
                point, stream = await desk.over("web")
                assert (point.matched, stream.confirmed, stream.lost) == (180, 130, {"probe_killed": 50})
            await holds(lambda: not list((tmp_path / "state/bpf").glob("tap_*")))

    asyncio.run(test())


def test_what_was_over_before_a_kill_is_still_known(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """A tap that had ended, and a port that had gone from one that goes on: killed twice, to the packet."""

    async def test() -> None:
        async with killable(tmp_path, netns=netns, cgroup_root=cgroup) as (probe, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await desk.order("brief", receiver.to, selector=f"name={one.name}", filter="udp port 53")
                await desk.copying("brief")
                one.send(20, port=53)
                one.send(3)
                await desk.becomes(lambda answer: answer.streams[0].confirmed == 20)
                await desk.take_back("brief")
                await desk.over("brief")
                await desk.order("web", receiver.to, selector="kind=netns")
                with Workload(netns) as two:
                    await desk.copying("web", 2)
                    two.send(30)
                    await desk.becomes(lambda answer: answer.streams[0].confirmed == 30)
                await desk.copying("web")
                one.send(7)
                await desk.becomes(lambda answer: answer.streams[0].confirmed == 37)
                for _ in range(2):
                    probe.end(signal.SIGKILL)
                    probe.start()
                    await desk.copying("web")
                    answer = await desk.answer()
                    points = {point.tap: point for point in answer.past}
                    streams = {stream.tap: stream for stream in answer.past_streams}
                    brief, web = points["brief"], points["web"]
                    assert (brief.matched, brief.not_matched, brief.written, brief.lost) == (20, 3, 20, {})
                    assert (web.matched, web.written, web.lost) == (37, 37, {})
                    confirmed = {name: (stream.confirmed, stream.lost) for name, stream in streams.items()}
                    assert confirmed == {"brief": (20, {}), "web": (37, {})}

    asyncio.run(test())


def test_without_tcx_a_killed_probes_filters_are_taken_away(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """Classic filters outlive their process: the next probe removes them, though nobody orders anything."""

    def filters(one: Workload) -> str:
        return run("tc", "-n", one.scope, "filter", "show", "dev", one.port, "ingress")

    async def test() -> None:
        async with killable(tmp_path, netns=netns, cgroup_root=cgroup, attach="clsact") as (probe, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await desk.order("web", receiver.to, selector=f"name={one.name}")
                await desk.copying("web")
                one.send(5)
                await holds(lambda: bool(receiver.streams) and receiver.streams[0].count == 5)
                assert "tap_port_ingr" in filters(one)
                probe.end(signal.SIGKILL)
                assert "tap_port_ingr" in filters(one)
                await desk.take_back("web")
                probe.start()
                await desk.becomes(lambda answer: answer.past_streams and not answer.taps)
                assert "tap_port_ingr" not in filters(one)
                assert " port_ingress:" in filters(one)  # the meter's

    asyncio.run(test())
