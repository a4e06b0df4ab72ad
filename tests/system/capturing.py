"""`eastwest capture` as its user runs it, and senders whose every packet can be told from the others."""

import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eastwest.kernel.netns import inside
from tests.conftest import Workload
from tests.kernel.blocks import Packet, parse
from tests.system.user_site import EASTWEST, SECONDS, Site, until

PORT = 2000

_GROUP = """
import os, socket, struct, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 0))
print('in', flush=True)
number = 0
for line in sys.stdin:
    for _ in range(int(line)):
        s.sendto(struct.pack('!I', number) + bytes(68), s.getsockname())
        s.recv(100)
        number += 1
    print(number, flush=True)
"""


class Group:
    """A process on the scope's network in a cgroup of its own; what it sends over lo it receives."""

    def __init__(self, netns: Path, cgroup: Path) -> None:
        cgroup.mkdir()
        command = ["nsenter", f"--net={netns}", sys.executable, "-c", _GROUP, str(cgroup)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._said() == "in"

    def _said(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def send(self, count: int) -> None:
        """Numbered datagrams of 100 bytes with the IP header, each received before the next."""
        assert self._process.stdin
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self._said()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def send(workload: Workload, numbers: range, port: int = PORT) -> None:
    """Numbered datagrams of 100 bytes with the IP header."""
    with inside(workload.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for number in numbers:
            s.sendto(struct.pack("!I", number) + bytes(68), ("10.1.0.2", port))


def numbers(packets: list[Packet], link: int) -> list[int]:
    """Those that the datagrams carry; `link`: bytes before the IP header."""
    return [struct.unpack_from("!I", packet.data, link + 28)[0] for packet in packets]


class Captured:
    """A running capture, its output in a file and its words in another."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, errors: Path) -> None:
        self.process = process
        self.output = output
        self._errors = errors

    @property
    def said(self) -> list[str]:
        return self._errors.read_text().splitlines()

    def ready(self) -> None:
        """Wait until what it orders is in effect."""
        until(lambda: any(" capturing: " in line for line in self.said), "it captures")

    def reads(self) -> None:
        """Wait until what comes from now on is written: a section is there."""
        until(lambda: self.output.exists() and self.output.stat().st_size, "it reads")

    def holds(self, packets: int) -> None:
        """Wait until so many are written."""
        until(lambda: len(self.packets(whole=False)) >= packets, f"{packets} packets are written")

    def end(self, number: int = signal.SIGINT) -> int:
        """As Ctrl-C does; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def packets(self, whole: bool = True) -> list[Packet]:
        data = self.output.read_bytes()
        return [packet for section in parse(data, whole) for packet in section.packets] if data else []


@contextmanager
def capturing(site: Site, *arguments: str, to: str = "file") -> Iterator[Captured]:
    """`eastwest capture …` with `-w FILE`, or into a file by standard output; killed at the end."""
    with writing(site, "capture", *arguments, to=to) as captured:
        yield captured


@contextmanager
def writing(site: Site, *words: str, to: str = "file", name: str = "captured") -> Iterator[Captured]:
    """The same with any verb that writes packets."""
    output, errors = site.config.with_name(f"{name}.pcapng"), site.config.with_name(f"{name}.err")
    command = [*EASTWEST, *words, *(["-w", str(output)] if to == "file" else [])]
    with errors.open("wb") as err, output.open("wb") if to != "file" else errors.open("ab") as out:
        process = subprocess.Popen(command, env=site.environment, stdout=out, stderr=err)
    try:
        yield Captured(process, output, errors)
    finally:
        process.kill()
        process.wait()
