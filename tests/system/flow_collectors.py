"""Other people's flow collectors, as processes of the test's own: nfcapd (nfdump) and nfacctd (pmacct)."""

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import require, run
from tests.system.bus_server import until

Record = dict[str, Any]


def free_port(kind: socket.SocketKind) -> int:
    """A port that nobody uses now."""
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def bound(port: int) -> bool:
    """Whether somebody listens on this UDP port."""
    return f":{port:04X} " in Path("/proc/net/udp").read_text()


class FlowCollector:
    """A process that can be started, stopped (it writes what it has) and killed."""

    def __init__(self, directory: Path, program: str, *arguments: str, port: int) -> None:
        require(shutil.which(program), f"needs {program}: apt-get install nfdump pmacct")
        directory.mkdir(exist_ok=True)
        self.directory, self.port = directory, port
        self._command = (program, *arguments)
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self.directory)

        async def ready() -> bool:
            return bound(self.port)

        await until(ready)

    def stop(self, how: int = signal.SIGINT) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None


def nfcapd(directory: Path, port: int) -> FlowCollector:
    """nfdump's collector; it writes one file, at its end."""
    place = ("-w", str(directory), "-b", "127.0.0.1", "-p", str(port), "-t", "3600")
    return FlowCollector(directory, "nfcapd", *place, port=port)


def nfdump(directory: Path) -> list[Record]:
    """What nfcapd has written."""
    found: list[Record] = []
    for file in sorted(directory.glob("nfcapd.2*")):
        listed = run("nfdump", "-q", "-r", str(file), "-o", "json").strip(" ,[]\n")
        found += json.loads(f"[{listed}]")  # version 1.7.1 leaves the brackets out
    return found


_PRIMITIVES = """\
name=ew_label field_type=32473:1 len=4 semantics=u_int
name=ew_service field_type=32473:2 len=4 semantics=u_int
name=ew_class field_type=32473:3 len=1 semantics=u_int
"""


def nfacctd(directory: Path, port: int) -> FlowCollector:
    """pmacct's collector, told of the enterprise's elements."""
    directory.mkdir(exist_ok=True)
    (directory / "primitives").write_text(_PRIMITIVES)
    (directory / "conf").write_text(
        f"""\
daemonize: false
nfacctd_ip: 127.0.0.1
nfacctd_port: {port}
aggregate_primitives: {directory}/primitives
plugins: print[out]
aggregate[out]: src_host, dst_host, src_port, dst_port, proto, ew_label, ew_service, ew_class
print_output[out]: json
print_output_file[out]: {directory}/out
print_output_file_append[out]: true
print_refresh_time[out]: 1
nfacctd_disable_checks: false
"""
    )
    return FlowCollector(directory, "nfacctd", "-f", str(directory / "conf"), port=port)


def pmacct(directory: Path) -> list[Record]:
    """What nfacctd has written."""
    out = directory / "out"
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


@contextmanager
def stopped_at_last(*collectors: FlowCollector) -> Iterator[None]:
    try:
        yield
    finally:
        for collector in collectors:
            collector.stop(signal.SIGKILL)
