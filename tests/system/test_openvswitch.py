"""A real Open vSwitch, database and daemon, whose ports change; and servers of the test's that lie."""

import asyncio
import secrets
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eastwest.bus.messages import Facts
from eastwest.inventory import openvswitch, source
from eastwest.inventory.inventory import Inventory
from eastwest.inventory.model import Claim
from eastwest.inventory.openvswitch import OpenVSwitch
from eastwest.kernel.netns import inside
from eastwest.meter.check import cgroup_mount
from tests.conftest import Workload, require, run
from tests.system.bus_server import until

VM = "6c1f5a0e-8a51-4c55-9d0c-0f5b8e3f9a11"


class Switch:
    """An Open vSwitch with a bridge `br0` in user space, in a network namespace; all files in `directory`."""

    def __init__(self, directory: Path, netns: Path) -> None:
        self.directory = directory
        self.netns = netns
        self.socket = directory / "db.sock"
        self._server: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Switch":
        run("ovsdb-tool", "create", str(self.directory / "conf.db"))
        try:
            self.start_server()
            self.vsctl("--no-wait", "init")
            self._daemon = self._spawn("ovs-vswitchd", f"unix:{self.socket}", "vs.ctl")
            self.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def _kill(self) -> None:
        for process in (self._daemon, self._server):
            if process:
                process.kill()
                process.wait()

    def _spawn(self, name: str, database: str, control: str, *arguments: str) -> subprocess.Popen[bytes]:
        quiet = ("-vconsole:off", "-vsyslog:off", f"--log-file={self.directory}/{name}.log")
        inside = ("nsenter", f"--net={self.netns}")
        return subprocess.Popen(
            [*inside, name, database, f"--unixctl={self.directory / control}", *quiet, *arguments],
            stdin=subprocess.DEVNULL,
        )

    def start_server(self) -> None:
        # The one killed before leaves these.
        for name in ("db.sock", "db.ctl"):
            (self.directory / name).unlink(missing_ok=True)
        database = str(self.directory / "conf.db")
        self._server = self._spawn("ovsdb-server", database, "db.ctl", f"--remote=punix:{self.socket}")
        self.vsctl("--retry", "--no-wait", "show")

    def signal_server(self, number: signal.Signals) -> None:
        assert self._server
        self._server.send_signal(number)

    def kill_server(self) -> None:
        assert self._server
        self._server.kill()
        self._server.wait()

    def vsctl(self, *arguments: str) -> str:
        return run("ovs-vsctl", f"--db=unix:{self.socket}", "--timeout=60", *arguments)

    def tap(self, name: str) -> None:
        run("ip", "-n", self.netns.name, "tuntap", "add", name, "mode", "tap")

    def plug(self, name: str, *port: str, **ids: str) -> None:
        """Add a port, without waiting for the daemon."""
        told = [f"external_ids:{key.replace('_', '-')}={value}" for key, value in ids.items()]
        setting = ("--", "set", "interface", name, *told) if told else ()
        self.vsctl("--no-wait", "add-port", "br0", name, *port, *setting)


@pytest.fixture
def switch(tmp_path: Path, netns: Path) -> Iterator[Switch]:
    require(shutil.which("ovs-vswitchd"), "needs Open vSwitch: apt-get install openvswitch-switch")
    with Switch(tmp_path, netns) as switch:
        yield switch


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources come back at once: how long they pause is tested elsewhere."""
    monkeypatch.setattr(source, "_LONGEST_PAUSE", 0.5)


class Watched:
    """A source at work, and what it says."""

    def __init__(self, source: OpenVSwitch) -> None:
        self.source = source
        self.changes = 0

    def changed(self) -> None:
        self.changes += 1

    @property
    def said(self) -> dict[str, tuple[str, str | None]]:
        """Interface → identity, network."""
        return {
            device: (claim.identity, claim.facts.network)
            for claim in self.source.claims
            for device in claim.devices
        }

    async def become(self, condition: Callable[[], bool]) -> None:
        async def answer() -> bool:
            return condition()

        try:
            await until(answer, 60)
        except TimeoutError:
            raise AssertionError(f"{self.said}, {self.source.problem}") from None

    async def say(self, expected: dict[str, tuple[str, str | None]]) -> None:
        await self.become(lambda: self.said == expected and not self.source.away)
        assert self.source.problem is None


@asynccontextmanager
async def watching(where: str | None, patience: float = 15.0, quiet: float = 30.0) -> AsyncIterator[Watched]:
    watched = Watched(OpenVSwitch(where, patience=patience, quiet=quiet))
    task = asyncio.create_task(watched.source.run(watched.changed))
    try:
        await asyncio.wait_for(watched.source.answered.wait(), 60)
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def in_background(function: Callable[..., object], *arguments: str, **ids: str) -> None:
    await asyncio.to_thread(function, *arguments, **ids)


def test_ports_are_followed(switch: Switch) -> None:
    """Added, tagged anew, named, removed: said once it is in the database, and nothing else is."""

    async def test() -> None:
        async with watching(str(switch.socket)) as w:
            await w.say({})
            await in_background(switch.plug, "tap0", "tag=10", vm_id=VM, iface_id="p0")
            await w.say({"tap0": (f"vm:{VM}", "10")})
            await in_background(switch.plug, "tap1", "tag=11")
            await w.say({"tap0": (f"vm:{VM}", "10"), "tap1": ("", "11")})
            await in_background(switch.vsctl, "--no-wait", "set", "port", "tap1", "tag=12")
            await w.say({"tap0": (f"vm:{VM}", "10"), "tap1": ("", "12")})
            settings = ("external_ids:iface-id=p1", "external_ids:attached-mac=52:54:00:00:00:01")
            await in_background(switch.vsctl, "--no-wait", "set", "interface", "tap1", *settings)
            await w.say({"tap0": (f"vm:{VM}", "10"), "tap1": ("port:p1", "12")})
            segment = ("other_config:network_type=vxlan", "other_config:segmentation_id=70000")
            await in_background(switch.vsctl, "--no-wait", "set", "port", "tap0", *segment)
            await w.say({"tap0": (f"vm:{VM}", "70000"), "tap1": ("port:p1", "12")})
            await in_background(switch.plug, "eth0")
            await in_background(switch.plug, "vx0", "tag=9", "--", "set", "interface", "vx0", "type=vxlan")
            await in_background(switch.plug, "in0", "tag=9", "--", "set", "interface", "in0", "type=internal")
            await in_background(switch.vsctl, "--no-wait", "del-port", "tap0")
            await w.say({"tap1": ("port:p1", "12")})
            await w.become(lambda: w.source.userspace_devices == {"br0", "tap1", "eth0", "vx0", "in0"})
            await in_background(switch.vsctl, "--no-wait", "set", "bridge", "br0", "datapath_type=system")
            await w.become(lambda: w.source.userspace_devices == frozenset())

    asyncio.run(test())


def test_what_is_said_becomes_facts_of_whom_it_is(switch: Switch, cgroup: Path) -> None:
    """A namespace learns its network; a port that names its owner is a workload; an uplink is not."""

    async def test() -> None:
        changed = asyncio.Event()
        inventory = Inventory(
            scope=switch.netns,
            mount=cgroup_mount(),
            root=cgroup,
            patterns=(),
            sources=[OpenVSwitch(str(switch.socket))],
            changed=changed.set,
        )
        with Workload(switch.netns) as space:
            for name in ("tap0", "up0"):
                switch.tap(name)
            switch.plug(space.port, "tag=20")
            switch.plug("tap0", "tag=21", iface_id="p0")
            switch.plug("up0", "tag=22")
            async with inventory:

                async def joined() -> bool:
                    inventory.join()
                    return set(inventory.present) == {f"netns:{space.name}", "port:p0"}

                await until(joined, 60)
                found = {one.found.identity: one for one in inventory.present.values()}
                assert found[f"netns:{space.name}"].found.facts == Facts(network="20")
                assert found["port:p0"].found.facts == Facts(network="21")
                assert [port.name for port in found["port:p0"].ports] == ["tap0"]

    asyncio.run(test())


def test_a_database_that_is_killed_is_picked_up_again(switch: Switch) -> None:
    """What it said holds meanwhile; what changed while it was away is said once it is back."""

    async def test() -> None:
        switch.plug("tap0", "tag=10", iface_id="p0")
        async with watching(str(switch.socket)) as w:
            await w.say({"tap0": ("port:p0", "10")})
            switch.kill_server()
            await w.become(lambda: w.source.away)
            assert w.said == {"tap0": ("port:p0", "10")}
            assert w.source.problem is not None
            assert f"openvswitch: its database at {switch.socket} " in w.source.problem
            assert "; start openvswitch-switch, or correct openvswitch in [inventory]" in w.source.problem
            await in_background(switch.start_server)
            await w.say({"tap0": ("port:p0", "10")})
            await in_background(switch.plug, "tap1", "tag=11", iface_id="p1")
            await w.say({"tap0": ("port:p0", "10"), "tap1": ("port:p1", "11")})

    asyncio.run(test())


def test_a_database_that_hangs_is_named_and_picked_up_again(switch: Switch) -> None:
    """Nobody hangs up; silence is asked whether it still lives."""

    async def test() -> None:
        switch.plug("tap0", "tag=10", iface_id="p0")
        async with watching(str(switch.socket), patience=3.0, quiet=0.1) as w:
            await w.say({"tap0": ("port:p0", "10")})
            switch.signal_server(signal.SIGSTOP)
            try:
                await w.become(lambda: "does not answer" in (w.source.problem or ""))
                assert w.said == {"tap0": ("port:p0", "10")}
            finally:
                switch.signal_server(signal.SIGCONT)
            await w.say({"tap0": ("port:p0", "10")})

    asyncio.run(test())


def test_a_quiet_database_is_no_problem(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers when it is asked; nothing is said a second time."""
    asked: list[object] = []
    ask = openvswitch.Monitor._ask

    async def noted(self: openvswitch.Monitor[openvswitch.Change], method: str, *rest: object) -> None:
        asked.append(method)
        await ask(self, method, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(openvswitch.Monitor, "_ask", noted)

    async def test() -> None:
        switch.plug("tap0", "tag=10", iface_id="p0")
        async with watching(str(switch.socket), patience=60.0, quiet=0.01) as w:
            await w.say({"tap0": ("port:p0", "10")})
            before = w.changes
            await w.become(lambda: asked.count("echo") >= 5)
            assert (w.changes, w.source.problem, asked.count("monitor")) == (before, None, 1)

    asyncio.run(test())


def test_2000_ports_of_one_transaction_are_all_there(switch: Switch) -> None:
    """One change tells of all of them, and one takes all of them away."""
    ids = {f"t{number}": str(uuid.uuid4()) for number in range(2000)}
    added = [
        word
        for number, (name, vm) in enumerate(ids.items())
        for word in ("--", "add-port", "br0", name, f"tag={number}", *owned(name, vm))
    ]

    async def test() -> None:
        async with watching(str(switch.socket)) as w:
            await w.say({})
            await in_background(switch.vsctl, "--no-wait", *added[1:])
            await w.say({name: (f"vm:{vm}", str(n)) for n, (name, vm) in enumerate(ids.items())})
            assert w.source.userspace_devices == {"br0", *ids}
            await in_background(switch.vsctl, "--no-wait", "del-br", "br0")
            await w.say({})

    asyncio.run(test())


def owned(interface: str, vm: str) -> tuple[str, ...]:
    return ("--", "set", "interface", interface, f"external_ids:vm-id={vm}")


def test_a_remote_database_may_be_followed(switch: Switch) -> None:
    """By TCP, where the server has been told to listen there."""

    async def test() -> None:
        control = f"--target={switch.directory}/db.ctl"
        # The port is the namespace's, so nobody else has it; and only from there it is reached.
        run("ovs-appctl", control, "ovsdb-server/add-remote", "ptcp:6640:127.0.0.1")
        relay = await relayed(switch.netns)
        async with relay, watching(f"tcp:127.0.0.1:{relay.sockets[0].getsockname()[1]}") as w:
            await in_background(switch.plug, "tap0", "tag=10", iface_id="p0")
            await w.say({"tap0": ("port:p0", "10")})

    asyncio.run(test())


async def relayed(netns: Path) -> asyncio.Server:
    """A port of the host's loopback that leads to port 6640 in a namespace."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with inside(netns):
            there = socket.create_connection(("127.0.0.1", 6640))
        far_reader, far_writer = await asyncio.open_connection(sock=there)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    return await asyncio.start_server(pass_on, "127.0.0.1", 0)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


# -- servers that lie or hang; no real one does at will ------------------------------------------------------

HANGS = b""


@asynccontextmanager
async def liar(directory: Path, *answers: bytes, later: bytes = b"") -> AsyncIterator[Path]:
    """Says one answer per connection, the last one ever after; `later` when it is asked again."""
    path, turns = directory / "liar.sock", iter(answers)
    answer, held = [HANGS], []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        answer[0] = next(turns, answer[0])
        writer.write(answer[0])
        await reader.read(4096)
        if later and await reader.read(4096):
            writer.write(later)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(speak, path)
    try:
        yield path
    finally:
        server.close()
        for writer in held:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (HANGS, "does not answer"),
        (b'{"id":"echo","method":"echo","params":[]}' * 3, "does not answer"),
        (b'{"id":1,"error":null,"result":{"Port":{', "does not answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "cannot be understood: no JSON object"),
        (secrets.token_bytes(4096).replace(b"{", b"") + b"}", "cannot be understood"),
        (
            b'{"id":1,"error":null,"result":{"Port":{"u":{"new":{"tag":"x"}}}}}',
            "cannot be understood: Expected",
        ),
        (b'{"id":1,"result":{"Port":{"u":{"new":{"tag":1,"interfaces":["set",[1]],', "does not answer"),
        (
            b'{"id":1,"error":null,"result":' + b'{"a":' * 90_000 + b"1" + b"}" * 90_001,
            "cannot be understood",
        ),
        (
            b'{"id":1,"result":null,"error":{"error":"unknown database"}}',
            "refuses: {'error': 'unknown database'}",
        ),
    ],
)
def test_a_server_that_makes_no_sense_is_named(tmp_path: Path, answer: bytes, problem: str) -> None:
    """One line with its remedy; it is asked again, and believed once it makes sense."""
    good = b'{"id":1,"error":null,"result":{}}'

    async def test() -> None:
        async with liar(tmp_path, answer, answer, good) as path, watching(str(path), patience=0.5) as w:
            assert w.source.problem is not None
            assert problem in w.source.problem
            assert len(w.source.problem) < 500
            await w.become(lambda: w.source.problem is None)

    asyncio.run(test())


def test_nonsense_after_sense_leaves_what_was_said(tmp_path: Path) -> None:
    """References that are none come late, where rows are put together."""
    told = b'{"id":1,"error":null,"result":{"Interface":{"i":{"new":%s}},"Port":{"p":{"new":%s}}}}' % (
        b'{"name":"tap0","type":"","external_ids":["map",[["iface-id","p0"]]]}',
        b'{"tag":3,"interfaces":["uuid","i"],"other_config":["map",[]]}',
    )
    row = b'{"tag":3,"interfaces":["set","i"],"other_config":["map",[]]}'
    nonsense = b'{"id":null,"method":"update","params":[null,{"Port":{"p":{"new":%s}}}]}' % row

    async def test() -> None:
        async with (
            liar(tmp_path, told, HANGS, later=nonsense) as path,
            watching(str(path), patience=60.0, quiet=0.1) as w,
        ):
            await w.become(lambda: w.source.away)
            assert "cannot be understood" in (w.source.problem or "")
            claim = Claim("port:p0", "port", "p0", Facts(network="3"), frozenset({"tap0"}))
            assert list(w.source.claims) == [claim]

    asyncio.run(test())


def test_where_none_is_installed_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no problem unless somebody asked for it."""
    missing = str(tmp_path / "db.sock")
    monkeypatch.setattr(openvswitch, "SYSTEM_SOCKET", missing)

    async def test() -> None:
        async with watching(None) as w:
            assert (w.source.problem, w.said) == (None, {})
        async with watching(missing) as w:
            assert "cannot be reached: No such file or directory; start" in (w.source.problem or "")

    asyncio.run(test())
