"""Containers: the id in a cgroup's path, so that one is known for what it is with no daemon to ask."""

import re

_CONTAINER = re.compile(
    r"(?:libpod-|libpod-payload-|docker-|crio-|cri-containerd-|nerdctl-)?([0-9a-f]{64})(?:\.scope)?"
)


def container_of(cgroup: str) -> str | None:
    """The id (64 hex digits) of the container that a cgroup is, or lies in; None: no container's.

    Of containers in containers the outermost: what is inside can be named by whoever runs there, and the
    host's daemons know the outer one only.
    """
    for name in cgroup.split("/"):
        if known := _CONTAINER.fullmatch(name):
            return known[1]
    return None
