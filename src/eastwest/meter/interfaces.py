"""Interfaces of the host's own: how much of their traffic no cgroup hook saw.

That is what has no socket: forwarded packets, packets to TIME_WAIT sockets or closed ports and the resets
that answer them, ICMP echoes that the kernel answers.
"""

import socket
from typing import Any

import numpy as np

from eastwest.bus.messages import HostInterface
from eastwest.kernel.netns import inside
from eastwest.kernel.records import record
from eastwest.meter.config import MeterConfig
from eastwest.meter.meter import Meter


def host_interfaces(meter: Meter, config: MeterConfig) -> list[HostInterface]:
    """The configured interfaces with their counts; a packet between two hooks may be in one of them."""
    found = []
    for name in config.host_interfaces:
        count = _count(meter, config, name)
        if count is not None:
            ingress, egress = int(count["ingress_packets"]), int(count["egress_packets"])
            found.append(
                HostInterface(
                    name=name,
                    ingress_packets=ingress,
                    egress_packets=egress,
                    ingress_not_seen_by_cgroup=max(ingress - int(count["cgroup_ingress_packets"]), 0),
                    egress_not_seen_by_cgroup=max(egress - int(count["cgroup_egress_packets"]), 0),
                )
            )
    return found


def _count(meter: Meter, config: MeterConfig, name: str) -> Any:
    try:
        with inside(config.netns):
            key = socket.if_nametoindex(name).to_bytes(4, "little")
    except OSError:
        return None
    value = meter.map("interfaces").lookup(key)
    if value is None:
        return None
    counts = np.frombuffer(value, record("interface_count"))
    return {field: counts[field].sum() for field in counts.dtype.names or ()}
