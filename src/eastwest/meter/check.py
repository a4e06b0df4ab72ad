"""Whether what the settings name is there: asked before anything is attached."""

import socket
from pathlib import Path

from eastwest.errors import ConfigError
from eastwest.kernel.netns import inside
from eastwest.meter.config import MeterConfig


def cgroup_mount() -> Path:
    """Where cgroup v2 is mounted. Raises ConfigError where it is not."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    raise ConfigError("cgroup v2 is not mounted", "mount it: mount -t cgroup2 none /sys/fs/cgroup")


def check(config: MeterConfig) -> None:
    """Raises ConfigError for a namespace, cgroup or interface that is not there."""
    mount = cgroup_mount()
    if config.netns and not config.netns.exists():
        raise ConfigError(f"netns = '{config.netns}': there is no such namespace", "see ip netns list")
    root = config.cgroup_root or mount
    if not (root.is_dir() and root.is_relative_to(mount)):
        raise ConfigError(f"cgroup_root = '{root}': there is no such cgroup", f"name a directory in {mount}")
    for name in config.host_interfaces:
        try:
            with inside(config.netns):
                socket.if_nametoindex(name)
        except OSError:
            raise ConfigError(f"host_interfaces: there is no interface '{name}'", "see ip link") from None
