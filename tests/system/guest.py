"""A tiny QEMU guest that boots in seconds and does what a test tells it, on its serial console."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from tests.conftest import readable, require, run
from tests.vm import run as vm

WORKDIR = vm.ROOT / ".venv/vm"
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci")
NETWORK_MODULES = ("failover", "net_failover", "virtio_net")
GUEST_MAC = "02:00:00:00:01:01"

SENDER = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>

/* udp ADDRESS PORT COUNT SIZE: that many datagrams of that many bytes */
int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    static char data[65536];
    int sent = 0, s = socket(AF_INET, SOCK_DGRAM, 0);

    if (argc != 5 || s < 0)
        return 2;
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    to.sin_port = htons(atoi(argv[2]));
    for (int i = 0; i < atoi(argv[3]); i++)
        sent += sendto(s, data, atoi(argv[4]), 0, (struct sockaddr *)&to, sizeof(to)) >= 0;
    printf("sent %d\n", sent);
    return 0;
}
"""

# The kernel hands NAME=value words of its command line to init, as environment.
INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys
for module in {" ".join(MODULES + NETWORK_MODULES)}; do insmod /modules/$module.ko; done
ip link set lo up
ip address add $ADDRESS dev eth0; ip link set eth0 up
[ -z "$PEER" ] || arp -i eth0 -s $PEER $PEER_MAC
[ -z "$COUNT" ] || udp $PEER $PORT $COUNT $SIZE
echo ready
while read line; do eval "$line"; echo done; done
while true; do sleep 1000; done
"""


class Image(NamedTuple):
    """What a guest boots from."""

    kernel: Path
    initramfs: Path


def build(directory: Path) -> Image:
    """Make the image: Debian's kernel, busybox, and a sender."""
    for command in ("qemu-system-x86_64", "cpio", "busybox", "gcc"):
        require(shutil.which(command), f"needs {command}: make test installs it")
    WORKDIR.mkdir(parents=True, exist_ok=True)
    kernel, modules = vm.kernel(WORKDIR)
    root = directory / "root"
    for name in ("bin", "proc", "sys", "dev", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    (directory / "udp.c").write_text(SENDER)
    run("gcc", "-static", "-O2", "-o", str(root / "bin/udp"), str(directory / "udp.c"))
    for module in MODULES + NETWORK_MODULES:
        shutil.copy(next(modules.rglob(f"{module}.ko")), root / "modules")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    archive = directory / "initramfs"
    names = "\n".join(str(path.relative_to(root)) for path in (root, *root.rglob("*")))
    with archive.open("wb") as out:
        command = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(command, cwd=root, input=names.encode(), stdout=out, check=True)
    return Image(kernel, archive)


def words(address: str = "10.0.2.15/24", peer: str = "", peer_mac: str = "", more: str = "") -> str:
    """The kernel's command line: the guest's address, and a neighbour that it need not ask for."""
    network = f"ADDRESS={address} PEER={peer} PEER_MAC={peer_mac}"
    return f"console=ttyS0 quiet panic=-1 ipv6.disable=1 {network} {more}"


def boot(image: Image, words: str) -> list[str]:
    """The part of QEMU's arguments that boots a guest which listens on the console."""
    machine = ["-accel", "tcg", "-cpu", "max", "-m", "128", "-no-reboot"]
    console = ["-serial", "stdio", "-monitor", "none"]
    return [
        *machine,
        *console,
        "-kernel",
        str(image.kernel),
        "-initrd",
        str(image.initramfs),
        "-append",
        words,
    ]


EMPTY = ("-S", "-accel", "tcg", "-m", "16", "-serial", "none", "-monitor", "none")
"""A VM that never begins to run: enough where only its emulator matters."""


class Emulator:
    """A QEMU process in a namespace, and in a cgroup if given; ended by `kill` at the latest."""

    def __init__(self, netns: Path, *arguments: str, cgroup: Path | None = None) -> None:
        enter = ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup)] if cgroup else []
        command = [*enter, "nsenter", f"--net={netns}", "qemu-system-x86_64", "-display", "none", *arguments]
        self._said = b""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    @property
    def pid(self) -> int:
        return self.process.pid

    def expect(self, word: bytes, seconds: float = 120) -> str:
        """Wait for a line on the serial console; what was said before it."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while True:
            before, found, after = self._said.replace(b"\r", b"").partition(word + b"\n")
            if found:
                self._said = after
                return before.decode(errors="replace")
            ready = readable(self.process.stdout, max(deadline - time.monotonic(), 0))
            said = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert said, f"no {word!r} from the guest: {self._said!r}"
            self._said += said

    def tell(self, command: str) -> str:
        """Have the guest run a command; its output."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        return self.expect(b"done").replace(command + "\n", "")

    def statistic(self, name: str) -> int:
        """The guest's own record of its eth0: tx_packets, rx_bytes (with Ethernet headers) …"""
        return int(self.tell(f"cat /sys/class/net/eth0/statistics/{name}").split()[-1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def __enter__(self) -> "Emulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
