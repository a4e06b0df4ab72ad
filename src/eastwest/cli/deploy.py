"""What `up` runs: the processes of one host, their settings and their privileges."""

import errno
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from eastwest.bus.client import Bus, BusConfig
from eastwest.bus.embedded import PROBE_USER, SERVER_USER, NatsServer, NatsServerConfig
from eastwest.cli import apikey
from eastwest.cli.config import text
from eastwest.cli.lock import PROBE_LOCK, holder
from eastwest.cli.settings import Settings
from eastwest.cli.supervisor import Child, Stuck
from eastwest.collector.collector import Collector
from eastwest.collector.streams import Streams
from eastwest.errors import ConfigError, RefusedError
from eastwest.export.exporter import Exporter
from eastwest.manager.fleet import Fleet
from eastwest.manager.manager import Manager, token_of
from eastwest.meter.check import check
from eastwest.store.store import Store
from eastwest.watch.watcher import Watcher

MIN_FREE_BYTES = 64 << 20
_PROBE_GONE_SECONDS = 2.0

PROBE_CAPABILITIES = (
    "bpf",
    "perfmon",
    "net_admin",
    "net_raw",  # kernel/pcap_child.py: a live handle, to compile filters on
    "setgid",  # … which then becomes nobody
    "setuid",
    "sys_admin",  # mount of the BPF file system, setns
    "sys_ptrace",  # namespaces of processes under /proc
    "dac_read_search",
    "dac_override",
    "chown",
)


@dataclass(frozen=True)
class Deployment:
    """One host's processes. `url`: where the API will be; `started`: reports before it are old."""

    children: list[Child]
    log_dir: Path
    url: str
    host: str
    started: datetime
    token: str | None
    """What the API asks for, if it does."""
    key: Path | None
    """Where the secret is that changes ask for, if it is this start's own."""

    def forget_key(self) -> None:
        """Nobody needs it any more."""
        if self.key:
            self.key.unlink(missing_ok=True)


def deploy(settings: Settings) -> Deployment:
    """Check what would fail later, write each role's settings. Raises ConfigError, RefusedError, BusError."""
    address = parse_address(settings.server.listen)
    _refuse_unusable(settings)
    token = token_of(settings.server)
    refuse_used(address)
    check(settings.probe)
    state_dir = settings.probe.state_dir
    refuse_full(state_dir)
    refuse_probe(state_dir)
    own_key = not (settings.server.token_file or settings.server.write_token_file)
    settings = with_key(settings)
    children, buses = [], {PROBE_USER: settings.bus, SERVER_USER: settings.bus}
    if settings.bus == BusConfig():  # nothing said: a bus of our own
        nats = NatsServer(NatsServerConfig(state_dir=state_dir / "nats"))
        nats.prepare()
        buses = {user: nats.bus_config(user) for user in buses}
        # It goes on refusing writes after its disk has room again.
        stuck = Stuck("no space left on device", lambda: _free(state_dir / "nats") >= MIN_FREE_BYTES)
        children.append(Child("nats-server", nats.command(), stuck=stuck))
    for name, capabilities in ((SERVER_USER, ()), (PROBE_USER, PROBE_CAPABILITIES)):
        file = _write(state_dir / "roles", name, msgspec.structs.replace(settings, bus=buses[name]))
        # -P: what lies in the working directory must not be imported by a process with privileges.
        command = [sys.executable, "-P", "-m", "eastwest", name, "--config", str(file)]
        children.append(Child(name, command, capabilities))
    return Deployment(
        children=children,
        log_dir=state_dir / "log",
        url=_url(address),
        host=settings.probe.host,
        started=datetime.now(UTC),
        token=token,
        key=settings.server.write_token_file if own_key else None,
    )


def _refuse_unusable(settings: Settings) -> None:
    """What the constructors refuse is refused before anything starts; they are inert until entered."""
    bus, store = Bus(settings.bus), Store(settings.store)
    Collector(settings.collector, bus, store)
    fleet = Fleet(bus)
    Manager(settings.server, bus, store, fleet)
    Watcher(settings.alerts, bus, store, fleet, watches=settings.watch, detect=settings.detect)
    Exporter(settings.export.ipfix, store)
    Streams(settings.streams, bus)


def with_key(settings: Settings) -> Settings:
    """Settings that ask for a secret of this start where something is to be changed. Raises ConfigError."""
    server = settings.server
    if server.token_file or server.write_token_file:
        return settings
    key = apikey.make(parse_address(server.listen)[1], settings.probe.state_dir)
    return msgspec.structs.replace(settings, server=msgspec.structs.replace(server, write_token_file=key))


def parse_address(listen: str) -> tuple[str, int]:
    """ADDR:PORT or [ADDR]:PORT. Raises ConfigError."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"listen = '{listen}' is not ADDR:PORT", "write it like 127.0.0.1:8470")
    return host, int(port)


def refuse_used(address: tuple[str, int]) -> None:
    """Raises RefusedError if the port is in use, ConfigError if the address is none of this host's."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        socket.create_server(address, family=family).close()
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        if error.errno == errno.EADDRINUSE:
            raise RefusedError(f"{where} is in use", "choose another with --listen ADDR:PORT") from None
        why = os.strerror(error.errno or 0)
        raise ConfigError(f"cannot listen on {where}: {why}", "correct --listen") from None


def refuse_full(state_dir: Path) -> None:
    """Raises ConfigError where there is no room for what the roles write first."""
    free = _free(state_dir)
    if free < MIN_FREE_BYTES:
        raise ConfigError(
            f"{state_dir}: only {free >> 20} MiB are free on its disk",
            f"free {MIN_FREE_BYTES >> 20} MiB or more, or choose another --state-dir",
        )


def _free(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def refuse_probe(state_dir: Path) -> None:
    """Raises RefusedError where a probe runs alone: ours could not start."""
    deadline = time.monotonic() + _PROBE_GONE_SECONDS
    while (pid := holder(state_dir, PROBE_LOCK)) is not None:
        # One whose `up` was killed goes with it, but not at the same instant.
        if time.monotonic() > deadline:
            number = f" (process {pid})" if pid else ""
            raise RefusedError(f"a probe already runs on {state_dir}{number}", "stop it with `eastwest down`")
        time.sleep(0.05)


def _url(address: tuple[str, int]) -> str:
    host, port = address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _write(directory: Path, name: str, settings: Settings) -> Path:
    path = directory / f"{name}.toml"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text(settings))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "free or choose a disk") from None
    return path
