"""What `doctor` looks for: what every role needs of its host."""

import json
import platform
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from eastwest.cli.machine import Check, Machine, Status
from eastwest.errors import EastwestError

_NEEDED = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""linux/capability.h; what `up` leaves to the probe."""

_SERVER_PACKAGES = ("chdb", "clickhouse_connect", "fastapi", "uvicorn")
_SMALL_DISK, _NO_DISK = 2 << 30, 200 << 20
_SMALL_MEMORY = 1 << 30
_BTF = "/sys/kernel/btf/vmlinux"


def kernel(machine: Machine) -> Check:
    return Check("kernel", "ok", f"Linux {platform.release()} ({platform.machine()})")


def btf(machine: Machine) -> Check:
    if machine.has(_BTF):
        return Check("btf", "ok", "the kernel describes its types")
    return Check("btf", "missing", f"no {_BTF}", "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y")


def bpf(machine: Machine) -> Check:
    if machine.has("/proc/sys/kernel/unprivileged_bpf_disabled"):
        return Check("bpf", "ok", "the bpf system call is there")
    return Check("bpf", "missing", "no bpf system call", "boot a kernel built with CONFIG_BPF_SYSCALL=y")


def capabilities(machine: Machine) -> Check:
    lines = dict(line.split(":", 1) for line in machine.text("/proc/self/status").splitlines() if ":" in line)
    have = int(lines.get("CapEff", "0").strip() or "0", 16)
    lacking = [name for name, bit in _NEEDED.items() if not have >> bit & 1]
    if lacking:
        return Check("capabilities", "missing", f"without {', '.join(lacking)}", "run as root (sudo)")
    return Check("capabilities", "ok", "all that the probe needs")


def binding(machine: Machine) -> Check:
    package = Path(__file__).parents[1] / "kernel"
    if find_spec("eastwest.kernel._libbpf") is None or not list(package.glob("*.bpf.o")):
        return Check(
            "programs", "missing", "the BPF programs are not built", "install the wheel, or run make"
        )
    return Check("programs", "ok", "BPF programs and their loader are built")


def bpffs(machine: Machine) -> Check:
    if any(line.split()[-1:] == ["bpf"] for line in machine.text("/proc/filesystems").splitlines()):
        return Check("bpffs", "ok", "counting can outlive the probe")
    return Check("bpffs", "missing", "no BPF file system", "boot a kernel built with CONFIG_BPF_SYSCALL=y")


def tcx(machine: Machine) -> Check:
    # By the kernel's own type information, not by its version: distributions backport.
    if b"\0BPF_TCX_INGRESS\0" in machine.data(_BTF):
        return Check("tcx", "ok", "ports are metered through TCX")
    return Check("tcx", "degraded", "no TCX: ports are metered through clsact", "Linux 6.6 or newer has it")


def clsact(machine: Machine) -> Check:
    built_in = b"\0clsact_init\0" in machine.data(_BTF)
    if built_in or machine.has("/sys/kernel/btf/sch_ingress"):
        return Check("clsact", "ok", "the way to meter ports where TCX is absent")
    if any(machine.find(f"/lib/modules/{platform.release()}/kernel/net/sched/sch_ingress.ko*")):
        return Check("clsact", "ok", "as a module that is loaded when it is needed")
    status: Status = "degraded" if tcx(machine).status == "ok" else "missing"
    return Check(
        "clsact", status, "no clsact queueing discipline", "boot a kernel built with CONFIG_NET_SCH_INGRESS"
    )


def cgroup2_mount(machine: Machine) -> str | None:
    """Where cgroup v2 is mounted."""
    for line in machine.text("/proc/self/mounts").splitlines():
        fields = line.split()
        if fields[2:3] == ["cgroup2"]:
            return fields[1]
    return None


def cgroup2(machine: Machine) -> Check:
    mount = cgroup2_mount(machine)
    if mount:
        return Check("cgroup2", "ok", f"mounted at {mount}")
    return Check(
        "cgroup2",
        "missing",
        "cgroup v2 is not mounted: workloads on the host's network cannot be told apart",
        "mount -t cgroup2 none /sys/fs/cgroup/unified",
    )


def cgroup_programs(machine: Machine) -> Check:
    """A program attached to the root with neither MULTI nor OVERRIDE would refuse ours beside it."""
    name, mount = "cgroup programs", cgroup2_mount(machine)
    if mount is None:
        return Check(name, "degraded", "unknown without cgroup v2", "mount cgroup v2")
    listing = machine.ask("bpftool", "-j", "cgroup", "show", mount)
    if not listing and shutil.which("bpftool") is None:
        return Check(name, "degraded", "unknown: no bpftool to ask", "apt-get install bpftool")
    programs = json.loads(listing or "null")
    if not isinstance(programs, list):
        remedy = f"run as root, and see: bpftool cgroup show {mount}"
        return Check(name, "degraded", "unknown: bpftool cannot list them", remedy)
    for program in programs:
        if "inet" in program.get("attach_type", "") and not program.get("attach_flags"):
            return Check(
                name,
                "missing",
                f"program {program.get('id')} at the root of {mount} tolerates no other",
                "attach it with BPF_F_ALLOW_MULTI, or set cgroup_root below it",
            )
    return Check(name, "ok", f"{len(programs)} at the root, none exclusive")


def open_vswitch(machine: Machine) -> Check:
    for socket in ("/var/run/openvswitch/db.sock", "/run/openvswitch/db.sock"):
        if machine.has(socket):
            return Check("open vswitch", "ok", f"database at {socket}")
    return Check(
        "open vswitch",
        "degraded",
        "no database socket: networks and mirrors of virtual switches are not known",
        "start Open vSwitch (apt-get install openvswitch-switch), if this host is to have it",
    )


def nats_server(machine: Machine) -> Check:
    from eastwest.bus.embedded import NatsServer, NatsServerConfig

    try:
        program = NatsServer(NatsServerConfig(state_dir=machine.root)).command()[0]
    except EastwestError as error:
        return Check("nats-server", "degraded", f"{error.what}: `eastwest up` cannot run", error.remedy)
    return Check("nats-server", "ok", program)


def server_packages(machine: Machine) -> Check:
    lacking = [name for name in _SERVER_PACKAGES if find_spec(name) is None]
    if lacking:
        return Check(
            "server packages",
            "degraded",
            f"without {', '.join(lacking)}: this host can run the probe alone",
            "pip install 'eastwest[server]'",
        )
    return Check("server packages", "ok", "database and API are installed")


def setpriv(machine: Machine) -> Check:
    if shutil.which("setpriv"):
        return Check("setpriv", "ok", "roles run with the privileges they need, no more")
    return Check("setpriv", "missing", "no setpriv to drop privileges with", "apt-get install util-linux")


def disk(machine: Machine) -> Check:
    state_dir = machine.state_dir
    place = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / 1e9:.1f} GB free for {state_dir}"
    if free < _SMALL_DISK:
        status: Status = "missing" if free < _NO_DISK else "degraded"
        return Check("disk", status, detail, "free 2 GB or more, or choose another --state-dir")
    return Check("disk", "ok", detail)


def memory(machine: Machine) -> Check:
    for line in machine.text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            detail = f"{available / 1e9:.1f} GB available"
            if available < _SMALL_MEMORY:
                return Check("memory", "degraded", detail, "the server wants 1 GB; run the probe alone here")
            return Check("memory", "ok", detail)
    return Check("memory", "degraded", "unknown", "mount /proc")


def time_service(machine: Machine) -> Check:
    name = "time"
    if machine.has("/run/systemd/timesync/synchronized"):
        return Check(name, "ok", "synchronized by systemd-timesyncd")
    tracking = machine.ask("chronyc", "-c", "tracking").split(",")
    if len(tracking) > 4 and not tracking[-1].startswith("Not"):
        return Check(name, "ok", f"synchronized by chrony, {float(tracking[4]) * 1e6:.0f} us off")
    if "yes" in machine.ask("timedatectl", "show", "--property=NTPSynchronized"):
        return Check(name, "ok", "synchronized")
    return Check(
        name,
        "degraded",
        "no time service found: times of several hosts cannot be compared",
        "apt-get install chrony",
    )


ALL: tuple[Callable[[Machine], Check], ...] = (
    kernel,
    btf,
    bpf,
    capabilities,
    binding,
    bpffs,
    tcx,
    clsact,
    cgroup2,
    cgroup_programs,
    open_vswitch,
    nats_server,
    server_packages,
    setpriv,
    disk,
    memory,
    time_service,
)
