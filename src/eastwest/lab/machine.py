"""The lab's VM: a QEMU guest without an address of its own, whose traffic leaves by QEMU's own sockets.

It boots an installed kernel with nothing in memory but busybox, this Python and an actor, which takes its
orders on the serial console. No KVM, no image, no disk.
"""

import json
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from eastwest.lab.crew import DIE_WITH_PARENT, IN_CGROUP, SCRIPT
from eastwest.lab.plan import MACHINE_ADDRESS, Machine

QEMU = "qemu-system-x86_64"
PACKAGES = {QEMU: "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio"}
KERNEL_PACKAGE = "linux-image-cloud-amd64"
BOOT_SECONDS = 90.0
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
)
PROMPT = "ready"
"""What the guest says once its console takes orders as they are; before that it would say them again."""

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t devtmpfs none /dev
for module in {" ".join(MODULES)}; do [ ! -e /modules/$module.ko ] || insmod /modules/$module.ko; done
ip link set lo up
ip address add {MACHINE_ADDRESS}/24 dev eth0; ip link set eth0 up
stty -F /dev/ttyS0 raw -echo
echo {PROMPT}
exec {{python}} -I -S /actor.pyc '{{{{}}}}' </dev/ttyS0 >/dev/ttyS0 2>&1
"""

_LOADED = """
import asyncio, json, runpy, sys
runpy.run_path(sys.argv[1], run_name="lab")
asyncio.run(asyncio.sleep(0))
modules = [module for name, module in sorted(sys.modules.items()) if name != "__main__"]
files = [(getattr(one, "__file__", None), getattr(one, "__cached__", None) or "") for one in modules]
print(json.dumps([file for file in files if file[0]]))
"""
"""Which files of the library an actor loads."""


class Kernel(NamedTuple):
    """An image, and the directory with its modules."""

    image: Path
    modules: Path


def kernels() -> list[Kernel]:
    """Installed kernels that a guest can boot, newest last; or one that the tests have fetched."""
    found = []
    for root in (Path(sys.prefix) / "vm", Path("/")):
        for image in sorted(root.glob("boot/vmlinuz-*")):
            modules = root / "lib/modules" / image.name.removeprefix("vmlinuz-")
            # Where it is compressed, busybox cannot load it.
            if any(modules.rglob("virtio_net.ko")):
                found.append(Kernel(image, modules))
    return found


def lacking() -> str:
    """Why no VM can be started here, with the remedy; empty: it can."""
    missing = [command for command in PACKAGES if not shutil.which(command)]
    if missing:
        return f"{missing[0]} is not installed: apt-get install {' '.join(PACKAGES.values())}"
    return "" if kernels() else f"there is no kernel to boot: apt-get install {KERNEL_PACKAGE}"


def build(directory: Path) -> list[str]:
    """Make the guest's memory in `directory`; the part of QEMU's command that boots it."""
    kernel = kernels()[-1]
    root = directory / "root"
    for name in ("bin", "proc", "sys", "dev", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for name in MODULES:
        for module in kernel.modules.rglob(f"{name}.ko"):  # one that is built in has no file
            shutil.copy(module, root / "modules")
    python = Path(sys.executable).resolve()
    _copy_python(python, root)
    init = root / "init"
    init.write_text(INIT.format(python=python))
    init.chmod(0o755)
    archive = directory / "initramfs"
    names = "\n".join(str(path.relative_to(root)) for path in (root, *root.rglob("*")))
    with archive.open("wb") as out:
        cpio = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(cpio, cwd=root, input=names.encode(), stdout=out, check=True)
    shutil.rmtree(root)
    words = "console=ttyS0 quiet loglevel=0 panic=-1 ipv6.disable=1"
    return ["-kernel", str(kernel.image), "-initrd", str(archive), "-append", words]


def _copy_python(python: Path, root: Path) -> None:
    """The interpreter, the actor and just those modules that it loads, compiled: a guest is slow at that."""
    asked = [str(python), "-I", "-S", "-c", _LOADED, str(SCRIPT)]
    listing = subprocess.run(asked, check=True, capture_output=True, text=True)
    binaries = [python]
    for file, cached in json.loads(listing.stdout):
        source = Path(file)
        target = root / source.with_suffix(".pyc" if source.suffix == ".py" else source.suffix).relative_to(
            "/"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".py":
            binaries.append(source)
        elif Path(cached).is_file():
            shutil.copy(cached, target)
        else:
            py_compile.compile(file, cfile=str(target), doraise=True)
    py_compile.compile(str(SCRIPT), cfile=str(root / "actor.pyc"), doraise=True)
    for binary in {*binaries, *_libraries(binaries)}:
        target = root / binary.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(binary, target)


def _libraries(binaries: list[Path]) -> set[Path]:
    """Shared libraries that these load, and the loader."""
    listing = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    words = (word for line in listing.splitlines() if not line.endswith(":") for word in line.split())
    return {Path(word) for word in words if word.startswith("/")}


def command(machine: Machine, slice_directory: Path, boot: list[str]) -> list[str]:
    """What runs the VM in its cgroup, its console on standard input and output."""
    devices = ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
    network = ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]
    emulator = [QEMU, "-name", machine.name, "-accel", "tcg", "-cpu", "max", "-m", "192", *devices, *network]
    return [*IN_CGROUP, str(slice_directory / machine.directory), *DIE_WITH_PARENT, *emulator, *boot]
