"""The lab's switch: a bridge of Open vSwitch in user space, which needs no kernel module.

A daemon that runs already is used. Otherwise the lab starts one of its own, whose database and sockets are in
the lab's directory, so that stopping it needs nothing but that directory.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from eastwest.errors import EastwestError, MissingFeature

SYSTEM_DIRECTORY = Path("/var/run/openvswitch")
NETDEV_TAP = "ovs-netdev"
"""The tap device of every netdev datapath."""
PACKAGES = {"ip": "iproute2"}
"""Debian's package of a command, where it is not Open vSwitch's."""


def missing(command: str) -> MissingFeature:
    package = PACKAGES.get(command, "openvswitch-switch")
    return MissingFeature(f"{command} is not installed", f"apt-get install {package}")


async def run(*command: str, deadline: float = 20.0, environment: dict[str, str] | None = None) -> str:
    """The output of a command. MissingFeature: it is not installed; EastwestError: it failed, and how."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
        )
    except FileNotFoundError as error:
        raise missing(command[0]) from error
    try:
        out, err = await asyncio.wait_for(process.communicate(), deadline)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise EastwestError(f"{command[0]} did not end within {deadline:.0f} s") from None
    if process.returncode:
        raise EastwestError(f"{command[0]} failed: {err.decode(errors='replace').strip()}")
    return out.decode()


async def until(condition: Callable[[], bool], deadline: float) -> bool:
    """Wait for `condition`; whether it came true within `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


class SwitchState(msgspec.Struct, frozen=True):
    """Where a lab's switch is, as kept in its state file. `own`: the daemons are the lab's."""

    bridge: str
    directory: str
    own: bool

    def socket(self) -> str:
        return f"unix:{self.directory}/db.sock"


async def system_switch_runs() -> bool:
    """Whether a host-wide Open vSwitch answers, database and daemon."""
    try:
        await run("ovs-vsctl", f"--db=unix:{SYSTEM_DIRECTORY}/db.sock", "--timeout=2", "get-manager")
        await run("ovs-appctl", "--timeout=2", "version")
    except MissingFeature:
        raise
    except EastwestError:
        return False
    return True


def is_gone(path: Path) -> bool:
    return not path.exists()


class Switch:
    """A bridge. `directory` is where daemons of its own would live."""

    def __init__(self, bridge: str, directory: Path) -> None:
        self._bridge = bridge
        self._directory = directory
        self._daemons: list[asyncio.subprocess.Process] = []
        self._marker = directory / NETDEV_TAP
        self.state = SwitchState(bridge, str(directory), True)

    async def choose(self) -> SwitchState:
        """Decide whose daemons to use; nothing is started yet, so that it can be written down first."""
        if await system_switch_runs():
            self.state = SwitchState(self._bridge, str(SYSTEM_DIRECTORY), False)
        return self.state

    async def start(self) -> None:
        if self.state.own:
            await self._start_daemons()
            self._marker.touch()
        try:
            await self._add_bridge("netdev")
        except EastwestError:
            if not self.state.own:
                raise
            # A daemon with a netdev datapath needs the one tap device `ovs-netdev` for itself, and another
            # lab has it. "dummy" is the same datapath code without that device.
            self._marker.unlink()
            await self.vsctl("del-br", self._bridge)
            await self._add_bridge("dummy")

    async def _add_bridge(self, datapath: str) -> None:
        bridge = self._bridge
        quiet = "other-config:disable-in-band=true"
        settings = ("--", "set", "bridge", bridge, f"datapath_type={datapath}", quiet)
        await self.vsctl("add-br", bridge, *settings)
        await self._check_plugged(bridge)

    async def _start_daemons(self) -> None:
        directory, socket = self._directory, self.state.socket()
        database = str(directory / "conf.db")
        await run("ovsdb-tool", "create", database)
        await self._spawn("ovsdb-server", database, f"--remote=p{socket}", f"--unixctl={directory}/db.ctl")
        await self.vsctl("--retry", "--no-wait", "init")
        await self._spawn("ovs-vswitchd", socket, "--enable-dummy", f"--unixctl={directory}/vs.ctl")

    async def _spawn(self, name: str, *arguments: str) -> None:
        logging = (f"--log-file={self._directory}/{name}.log", "-vconsole:off", "-vsyslog:off")
        try:
            daemon = await asyncio.create_subprocess_exec(
                name,
                *arguments,
                *logging,
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except FileNotFoundError as error:
            raise missing(name) from error
        self._daemons.append(daemon)

    async def add_port(self, port: str, tag: int) -> None:
        """Plug the interface `port` in, as an access port of VLAN `tag`."""
        await self.vsctl("add-port", self._bridge, port, f"tag={tag}")
        await self._check_plugged(port)

    async def _check_plugged(self, interface: str) -> None:
        """What failed has no port number; the error column stays empty where the whole bridge failed."""
        number, error = (await self.vsctl("get", "interface", interface, "ofport", "error")).split("\n")[:2]
        if not number.isdecimal():
            raise EastwestError(f"Open vSwitch cannot use {interface}: {error}", "see its log")

    async def vsctl(self, *arguments: str) -> str:
        return await run("ovs-vsctl", f"--db={self.state.socket()}", "--timeout=15", *arguments)

    async def reap(self) -> None:
        """After `remove`: wait for the daemons, which are children of this process, to end."""
        for daemon in self._daemons:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(daemon.wait(), 5.0)
            if daemon.returncode is None:
                daemon.kill()
                await daemon.wait()
        self._daemons.clear()


async def remove(state: SwitchState) -> None:
    """Remove the bridge, and the daemons if they are the lab's own; whatever of it is there."""
    directory = Path(state.directory)
    if not state.own:
        # A daemon that has stopped meanwhile keeps the bridge in its database: say so.
        database = f"--db={state.socket()}"
        await run("ovs-vsctl", database, "--timeout=15", "--if-exists", "del-br", state.bridge)
        return
    for control, order in (("vs.ctl", ("exit", "--cleanup")), ("db.ctl", ("exit",))):
        path = directory / control
        if await asyncio.to_thread(path.exists):
            # A daemon that was killed leaves its socket, at which nobody answers.
            with contextlib.suppress(EastwestError):
                await run("ovs-appctl", "--timeout=5", f"--target={path}", *order)
                await until(partial(is_gone, path), 5.0)


def taps_left(state: SwitchState) -> list[str]:
    """Devices that an own daemon left because it was killed: its taps are persistent, nobody holds them."""
    if not state.own:
        return []
    mine = [state.bridge]
    if (Path(state.directory) / NETDEV_TAP).exists():
        mine.append(NETDEV_TAP)
    held = {tap for taps in held_taps() for tap in taps}
    return [name for name in mine if name not in held]


def held_taps() -> Iterator[list[str]]:
    """The names of the tap devices that Open vSwitch daemons hold, from `iff:` in fdinfo."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == "ovs-vswitchd":
                for info in comm.parent.glob("fdinfo/*"):
                    lines = info.read_text().splitlines()
                    yield [line.split()[1] for line in lines if line.startswith("iff:")]
