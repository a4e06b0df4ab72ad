"""Runs the kernel tests on Debian's own kernel, in QEMU: where TCX and some helpers do not exist.

    python -m tests.vm.run WORKDIR [pytest arguments…]

The machine boots from memory: Debian's cloud kernel with an initramfs that holds this Python, the tests and
what they need. Nothing of the host is shared with it, and no KVM is needed. Exits as pytest did.
"""

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = ("veth", "sch_ingress", "cls_bpf")
COMMANDS = ("ip", "tc", "nsenter", "bpftool", "timeout")
PACKAGES = (
    "_cffi_backend*",
    "_pytest",
    "_distutils_hack",
    "_hypothesis*",
    "cffi*",
    "hypothesis*",
    "iniconfig",
    "msgspec",
    "nats",
    "numpy",
    "numpy.libs",
    "packaging",
    "pluggy",
    "pygments",
    "py.py",
    "pyroute2",
    "pytest",
    "sortedcontainers*",
    "typing_extensions.py",
)
DONE = "eastwest-vm-exit="

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin PYTHONPATH=/repo:/repo/src:/packages HOME=/root
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mount -t tmpfs none /tmp; mount -t tmpfs none /run
mkdir -p /run/netns /root; mount -t cgroup2 none /sys/fs/cgroup
for module in /modules/*.ko; do insmod $module; done
ip link set lo up
cd /repo
{python} -P -m pytest -p no:cacheprovider -q --color=no {arguments}
echo {done}$?
poweroff -f
"""


def kernel(workdir: Path) -> tuple[Path, Path]:
    """Debian's newest cloud kernel: its image and its modules' directory. Fetched once."""
    if not list(workdir.glob("boot/vmlinuz-*")):
        depends = subprocess.run(
            ["apt-cache", "depends", "linux-image-cloud-amd64"], check=True, capture_output=True, text=True
        )
        package = next(line.split()[-1] for line in depends.stdout.splitlines() if "Depends:" in line)
        subprocess.run(
            ["apt-get", "download", "-qq", package], cwd=workdir, check=True, stderr=subprocess.DEVNULL
        )
        (archive,) = workdir.glob("linux-image-*.deb")
        subprocess.run(["dpkg", "-x", archive, workdir], check=True)
    (image,) = workdir.glob("boot/vmlinuz-*")
    (modules,) = workdir.glob("lib/modules/*")
    return image, modules


def libraries(binaries: list[Path]) -> set[Path]:
    """Shared libraries that these load."""
    found: set[Path] = set()
    for binary in binaries:
        listing = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
        for word in listing.split():
            if word.startswith("/"):
                found.add(Path(word))
    return found


def copy(source: Path, root: Path, target: str | None = None) -> None:
    """Copy a file or tree to the same place below `root`, or to `target` in it."""
    place = root / (target or str(source)).lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        skip = shutil.ignore_patterns(
            "__pycache__", "test", "tests", "idlelib", "ensurepip", "*.a", "tkinter"
        )
        shutil.copytree(source, place, symlinks=True, ignore=skip, dirs_exist_ok=True)
    elif not place.exists():
        shutil.copy(source, place)


def build(workdir: Path, modules: Path, arguments: list[str]) -> Path:
    """The initramfs."""
    root = workdir / "root"
    shutil.rmtree(root, ignore_errors=True)
    for directory in ("proc", "sys", "dev", "tmp", "run", "bin", "packages"):
        (root / directory).mkdir(parents=True)
    python = Path(sys.executable).resolve()
    copy(Path("/bin/busybox"), root)
    copy(python, root)
    copy(Path(os.__file__).parent, root)
    shutil.rmtree(root / f"{Path(os.__file__).parent}/site-packages".lstrip("/"), ignore_errors=True)
    for pattern in PACKAGES:
        for package in Path(site.getsitepackages()[0]).glob(pattern):
            copy(package, root, f"packages/{package.name}")
    for names in ("services", "protocols"):
        copy(Path("/etc") / names, root)
    copy(ROOT / "src", root, "repo/src")
    shutil.copytree(ROOT / "tests", root / "repo/tests", ignore=shutil.ignore_patterns("__pycache__", "vm"))
    shutil.copy(ROOT / "pyproject.toml", root / "repo")
    tools = [Path(found) for name in COMMANDS if (found := shutil.which(name))]
    for tool in tools:
        copy(tool, root, f"usr/bin/{tool.name}")
    binaries = [python, *tools, *root.rglob("*.so"), *root.rglob("*.so.*")]
    for library in libraries(binaries):
        if not (root / str(library).lstrip("/")).exists() and not library.is_relative_to(root):
            copy(library, root)
    for name in MODULES:
        copy(next(modules.rglob(f"{name}.ko")), root, f"modules/{name}.ko")
    init = root / "init"
    init.write_text(INIT.format(python=python, arguments=" ".join(arguments), done=DONE))
    init.chmod(0o755)
    archive = workdir / "initramfs"
    with archive.open("wb") as out:
        names = subprocess.Popen(["find", "."], cwd=root, stdout=subprocess.PIPE)
        cpio = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(cpio, cwd=root, stdin=names.stdout, stdout=out, check=True)
        names.wait()
    return archive


def main() -> int:
    workdir = Path(sys.argv[1]).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    image, modules = kernel(workdir)
    archive = build(workdir, modules, sys.argv[2:] or ["tests/kernel"])
    machine = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072"]
    boot = [
        "-kernel",
        str(image),
        "-initrd",
        str(archive),
        "-append",
        "console=ttyS0 quiet panic=-1 no_timer_check",
    ]
    quiet = ["-nographic", "-no-reboot", "-nic", "none"]
    result = 1
    with subprocess.Popen(
        [*machine, *boot, *quiet], stdout=subprocess.PIPE, text=True, errors="replace"
    ) as qemu:
        assert qemu.stdout is not None
        for line in qemu.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if line.startswith(DONE):
                result = int(line.removeprefix(DONE))
    return result


if __name__ == "__main__":
    sys.exit(main())
