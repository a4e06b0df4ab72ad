"""From what is stored and reported to what the API answers."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

import msgspec

from eastwest.bus import messages
from eastwest.errors import NotFoundError, RefusedError
from eastwest.labels.selector import Selector
from eastwest.manager import models
from eastwest.manager.fleet import Member
from eastwest.manager.ledger import Entry
from eastwest.store.reads import LabelTotal, Minute

UNATTRIBUTED = "unattributed"
"""Name and kind of label 0: what no workload claims."""

_SHOWN = frozenset(models.Label.model_fields)


def rfc3339(ns: int) -> str | None:
    """Unix ns as UTC text with all nine digits; None for 0, which means never."""
    if ns <= 0:
        return None
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def labels(
    workloads: Iterable[messages.Workload], totals: Iterable[LabelTotal], gone_too: bool
) -> list[models.Label]:
    """Label 0, then every workload with its counters; `gone_too`: also of workloads that are gone."""
    counted = {total.label: total for total in totals}
    known = {workload.label: workload for workload in workloads}
    rows = [_label(0, None, counted.get(0))]
    for label in sorted((known.keys() | counted.keys()) - {0}):
        workload = known.get(label)
        # A label without its workload's document: that message has not come yet.
        if gone_too or workload is None or workload.present:
            rows.append(_label(label, workload, counted.get(label)))
    return rows


def _label(label: int, workload: messages.Workload | None, total: LabelTotal | None) -> models.Label:
    counters = {} if total is None else {n: v for n, v in total.counters.items() if n in _SHOWN}
    if total is not None:
        counters["enforced_drops"] = total.counters["enforced_packets"]
    first = [t for t in (workload and workload.first_seen, total and total.first_seen) if t]
    last = [t for t in (workload and workload.last_seen, total and total.last_seen) if t]
    times = {"first_seen": rfc3339(min(first, default=0)), "last_seen": rfc3339(max(last, default=0))}
    if workload is None:
        name = UNATTRIBUTED if label == 0 else f"label-{label}"
        kind = UNATTRIBUTED if label == 0 else "unknown"
        nothing = {"tenant": "", "network": "", "service": "", "service_id": 0, "host": "", "ports": []}
        return models.Label.model_validate(
            {"label": label, "name": name, "kind": kind, **nothing, **counters, **times}
        )
    return models.Label.model_validate({**_identity(workload), **counters, **times})


def _identity(workload: messages.Workload) -> dict[str, object]:
    return {
        "label": workload.label,
        "name": workload.name,
        "kind": workload.kind,
        "tenant": workload.tenant,
        "network": workload.network,
        "service": workload.service,
        "service_id": workload.service_id,
        "host": workload.host,
        "ports": [port.name for port in workload.ports],
    }


def workloads(found: Iterable[messages.Workload], gone_too: bool) -> list[models.Workload]:
    """The workloads that are present, or all that ever were."""
    return [
        models.Workload.model_validate(
            {
                **_identity(workload),
                "addresses": workload.addresses,
                "class": workload.traffic_class,
                "cgroup": workload.cgroup,
                "present": workload.present,
                "first_seen": rfc3339(workload.first_seen),
                "last_seen": rfc3339(workload.last_seen),
                "past_ports": workload.past_ports,
                "past_addresses": workload.past_addresses,
            }
        )
        for workload in found
        if gone_too or workload.present
    ]


def ports(found: Iterable[messages.Workload], members: Iterable[Member]) -> list[models.Port]:
    """The ports of present workloads, then the hosts' own interfaces."""
    rows = [
        models.Port(
            port=port.name,
            host=workload.host,
            ifindex=port.ifindex,
            mac=port.mac,
            label=workload.label,
            name=workload.name,
            tenant=workload.tenant,
            network=workload.network,
        )
        for workload in found
        if workload.present
        for port in workload.ports
    ]
    for member in members:
        for interface in member.report.interfaces:
            unknown = dict.fromkeys(("ifindex", "mac", "label", "name", "tenant", "network"))
            counts = msgspec.structs.asdict(interface)
            port_name = counts.pop("name")
            rows.append(
                models.Port.model_validate(
                    {"port": port_name, "host": member.report.host, **unknown, **counts}
                )
            )
    return rows


def hosts(members: Iterable[Member]) -> list[models.Host]:
    """The last report of every probe."""
    rows = []
    for member in members:
        document = msgspec.to_builtins(member.report)
        document["time"] = rfc3339(member.report.time)
        document["started_at"] = rfc3339(member.report.started_at)
        document["cost"]["sampled_at"] = rfc3339(member.report.cost.sampled_at)
        document |= {"alive": member.alive, "age_seconds": round(member.age, 3)}
        document["problems"] += [member.silence] if member.silence else []
        rows.append(models.Host.model_validate(document))
    return rows


def ledger(entries: Iterable[Entry]) -> list[models.LedgerEntry]:
    """The ledger by label."""
    return [
        models.LedgerEntry(
            label=entry.label,
            seen_packets=entry.seen,
            stored_packets=entry.stored,
            pending_packets=entry.pending,
            lost=dict(entry.lost),
            balanced=entry.balanced,
        )
        for entry in entries
    ]


def minutes(rows: Iterable[Minute]) -> list[models.Minute]:
    """The roll-up by minute."""
    return [
        models.Minute.model_validate(
            {
                **asdict(row),
                "minute": f"{datetime.fromtimestamp(row.minute, UTC):%Y-%m-%dT%H:%M:%SZ}",
                "class": row.traffic_class,
            }
        )
        for row in rows
    ]


def selected(text: str | None, found: Iterable[messages.Workload]) -> list[int] | None:
    """Labels that a selector chooses among all workloads there ever were; None (no selector): all."""
    if text is None:
        return None
    selector = Selector.parse(text)
    if not selector.conditions:
        return None
    candidates: list[Mapping[str, object]] = [
        {"label": 0, "name": UNATTRIBUTED, "kind": UNATTRIBUTED},
        *({**_identity(w), "port": [*(p.name for p in w.ports), *w.past_ports]} for w in found),
    ]
    return [int(str(c["label"])) for c in candidates if selector.matches(c)]  # type: ignore[arg-type]


def named(name: str, found: Iterable[messages.Workload]) -> messages.Workload:
    """The one workload of this name or label, a present one if any. Raises NotFoundError, RefusedError."""
    matching = [w for w in found if name in (w.name, str(w.label))]
    present = [w for w in matching if w.present] or matching
    if not present:
        raise NotFoundError(f"there is no workload '{name}'", "see: eastwest workloads")
    if len(present) > 1:
        numbers = ", ".join(str(w.label) for w in present)
        raise RefusedError(f"'{name}' names several workloads", f"give the label of one instead: {numbers}")
    return present[0]
