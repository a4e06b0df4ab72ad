"""The sources of workloads that a probe asks."""

from pathlib import Path

from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.containers import Containers
from eastwest.inventory.libvirt import SYSTEM, Libvirt
from eastwest.inventory.openvswitch import OpenVSwitch
from eastwest.inventory.qemu import Qemu
from eastwest.inventory.scope import Scope
from eastwest.inventory.source import Source
from eastwest.meter.check import cgroup_mount
from eastwest.meter.config import MeterConfig


def sources(config: InventoryConfig, meter: MeterConfig) -> list[Source]:
    """One of each that the settings do not switch off. Raises ConfigError."""
    scope = scope_of(meter)
    engines = (
        ("podman", config.podman, "/run/podman/podman.sock"),
        ("docker", config.docker, "/run/docker.sock"),
    )
    found: list[Source] = [
        Containers(name, Path(path or default), expected=path is not None, scope=scope, config=config)
        for name, path, default in engines
        if path != ""
    ]
    if config.libvirt != "":
        found.append(Libvirt(config.libvirt or SYSTEM, expected=config.libvirt is not None, config=config))
    if config.qemu:
        found.append(Qemu(scope, cgroup_mount()))
    if config.openvswitch != "":
        found.append(OpenVSwitch(config.openvswitch))
    return found


def scope_of(config: MeterConfig) -> Scope:
    """What the probe meters. Raises ConfigError where cgroup v2 is not mounted."""
    mount = cgroup_mount()
    root = config.cgroup_root or mount
    below = root.relative_to(mount) if root.is_relative_to(mount) else root
    return Scope(config.netns, str("/" / below))
