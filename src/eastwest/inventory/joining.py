"""What several sources claim, joined: the same VM or container is one workload, whoever speaks of it.

Engines and hypervisors vouch for what they run. A virtual switch says whose an interface is by hearsay: it
adds facts to a workload that others know, and speaks for itself only where nobody else does.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from eastwest.bus.messages import NOTHING_SAID
from eastwest.inventory.model import Claim, Found

_MADE_UP = ("port:", "qemu:")
"""Beginnings of identities that a source gives for want of a better one."""

_PROBLEMS_SAID = 5


class Handle(NamedTuple):
    """What in the kernel a workload can be found with."""

    kind: Literal["device", "namespace", "cgroup"]
    key: str | int


@dataclass
class Joined:
    """What sources say."""

    workloads: dict[str, Found] = field(default_factory=dict)
    """By identity: those that a source vouches for."""

    owners: dict[Handle, Found] = field(default_factory=dict)
    """Whose an interface, a namespace, or a cgroup with the sockets in it is."""

    hearsay: dict[str, Found] = field(default_factory=dict)
    """By interface: whose it is said to be, facts that its owner has in any case; identity empty where no
    workload was named."""

    problems: list[str] = field(default_factory=list)


def join(vouched: Iterable[Claim], hearsay: Iterable[Claim] = ()) -> Joined:
    """Join claims, given in the order of trust: of two names for one workload the first holds."""
    groups: dict[str, list[Claim]] = {}
    owners: dict[Handle, list[Claim]] = {}
    joined = Joined()
    for claim in vouched:
        group = _group(claim, groups, owners)
        for handle in _handles(claim):
            if owners.setdefault(handle, group) is not group and len(joined.problems) < _PROBLEMS_SAID:
                joined.problems.append(_contradiction(handle, owners[handle][0], claim))
    for claim in hearsay:
        joined.hearsay |= {device: _found([claim]) for device in claim.devices}
    joined.workloads = {group[0].identity: _found(group) for group in groups.values()}
    joined.owners = {handle: joined.workloads[group[0].identity] for handle, group in owners.items()}
    return joined


def _group(claim: Claim, groups: dict[str, list[Claim]], owners: dict[Handle, list[Claim]]) -> list[Claim]:
    """The claims of the same workload, this one among them."""
    group = groups.get(claim.identity)
    if group is None and claim.identity.startswith(_MADE_UP):
        group = next((owners[handle] for handle in _handles(claim) if handle in owners), None)
    if group is None:
        group = groups[claim.identity] = []
    group.append(claim)
    return group


def _handles(claim: Claim) -> list[Handle]:
    handles = [Handle("device", device) for device in claim.devices]
    if claim.netns:
        handles.append(Handle("namespace", claim.netns))
    if claim.cgroup and claim.sockets:
        handles.append(Handle("cgroup", claim.cgroup))
    return handles


def _found(group: list[Claim]) -> Found:
    first, facts = group[0], NOTHING_SAID
    for claim in reversed(group):
        facts = claim.facts.over(facts)
    cgroup = next((claim.cgroup for claim in group if claim.cgroup), "")
    return Found(first.identity, first.kind, first.name or first.identity, cgroup, facts)


def _contradiction(handle: Handle, first: Claim, second: Claim) -> str:
    return (
        f"{first.identity} ('{first.name}') and {second.identity} ('{second.name}') both claim {handle.kind} "
        f"{handle.key}: it stays with the first; mend whichever is wrong"
    )
