"""The metric families by name: what each counts, and under which few labels.

Names follow Prometheus' conventions: base units (seconds, bytes, ratios), `_total` for counters. Directions
are the workload's. A host's counters run since its boot, and fall to zero with the next.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from eastwest.bus.stream import Depth
from eastwest.collector.collector import CollectorStatus
from eastwest.collector.streams import StreamsTotals
from eastwest.export.exporter import ExporterStatus
from eastwest.export.shares import Group
from eastwest.manager.fleet import Member
from eastwest.meter.rows import LOSSES
from eastwest.store.reads import Figures

Values = Mapping[tuple[str, ...], float]

_DIRECTIONS = ("ingress", "egress")
COUNTED = tuple(
    (unit, suspect, direction)
    for unit in ("packets", "bytes")
    for suspect in (False, True)
    for direction in _DIRECTIONS
)
"""What is counted of a label, in the order of `counts`."""


def counts(figures: Figures) -> list[int]:
    """A label's counters in the order of `COUNTED`."""
    return [
        figures.counters[f"{'suspect_' if suspect else ''}{direction}_{unit}"]
        for unit, suspect, direction in COUNTED
    ]


def counter(name: str, text: str, keys: Sequence[str], values: Values) -> Metric:
    """eastwest_`name`_total."""
    family = CounterMetricFamily(f"eastwest_{name}", text, labels=keys)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def gauge(name: str, text: str, keys: Sequence[str], values: Values) -> Metric:
    """eastwest_`name`."""
    family = GaugeMetricFamily(f"eastwest_{name}", text, labels=keys)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def hosts(members: Iterable[Member]) -> list[Metric]:
    """What the probes last reported."""
    members = list(members)
    return [*_counted(members), *_probes(members)]


def _counted(members: list[Member]) -> list[Metric]:
    packets: Counter[tuple[str, ...]] = Counter()
    octets: Counter[tuple[str, ...]] = Counter()
    unseen: Counter[tuple[str, ...]] = Counter()
    malformed: Counter[tuple[str, ...]] = Counter()
    for report in (member.report for member in members):
        for hook in report.hooks:
            for direction in _DIRECTIONS:
                packets[report.host, hook.hook, direction] += getattr(hook, f"{direction}_packets")
                octets[report.host, hook.hook, direction] += getattr(hook, f"{direction}_bytes")
        for interface in report.interfaces:
            for direction in _DIRECTIONS:
                n = getattr(interface, f"{direction}_not_seen_by_cgroup")
                unseen[report.host, interface.name, direction] += n
        for reason, n in report.malformed.items():
            malformed[report.host, reason] += n
    hook_keys = ("host", "hook", "direction")
    return [
        counter("host_packets", "Packets that the host's hooks counted, since its boot.", hook_keys, packets),
        counter("host_bytes", "Bytes that the host's hooks counted, IP header included.", hook_keys, octets),
        counter(
            "host_malformed_packets",
            "Packets that were counted but not parsed to their end.",
            ("host", "reason"),
            malformed,
        ),
        # No counter: a packet between two hooks is counted by one of them only, so it may fall.
        gauge(
            "host_not_seen_by_cgroup_packets",
            "Packets of a host interface that no cgroup hook saw, since the host's boot.",
            ("host", "interface", "direction"),
            unseen,
        ),
    ]


_PROBE: tuple[tuple[str, str, Callable[[Member], float]], ...] = (
    ("up", "1 where the probe's last report is recent.", lambda m: float(m.alive)),
    ("report_age_seconds", "Time since the probe's last report.", lambda m: m.age),
    ("problems", "What the probe cannot do now; the API's hosts name it.", lambda m: len(m.report.problems)),
    ("cpu_ratio", "CPU that the probe takes, of one core.", lambda m: m.report.cost.cpu_percent / 100),
    ("resident_memory_bytes", "Memory that the probe takes.", lambda m: m.report.cost.memory_bytes),
)


def _probes(members: list[Member]) -> list[Metric]:
    programs: Values = {
        (member.report.host, program.program): program.ns_per_packet / 1e9
        for member in members
        for program in member.report.cost.programs
    }
    return [
        *(
            gauge(f"probe_{name}", text, ("host",), {(m.report.host,): value(m) for m in members})
            for name, text, value in _PROBE
        ),
        gauge(
            "probe_program_packet_seconds",
            "What one run of a kernel program takes, as last sampled.",
            ("host", "program"),
            programs,
        ),
    ]


def collected(status: CollectorStatus) -> list[Metric]:
    """What the collector has done since the server started."""
    return [
        _sum("collector_messages", "Messages taken from the stream.", status.messages),
        _sum("collector_stored_messages", "Messages stored.", status.stored_messages),
        _sum("collector_stored_rows", "Rows stored.", status.stored_rows),
        _sum("collector_stored_packets", "Packets in the flow rows stored.", status.stored_packets),
        _sum("collector_repeated_messages", "Messages refused as stored already.", status.repeats),
        counter(
            "collector_malformed_messages",
            "Messages refused because they can never be stored.",
            ("reason",),
            {(reason,): n for reason, n in status.malformed.items()},
        ),
        _one(
            "collector_up",
            "0 while nothing can be stored; the API's health says why.",
            status.problem is None,
        ),
    ]


def exported(status: ExporterStatus | None) -> list[Metric]:
    """What the IPFIX exporter has done since the server started; nothing where it is off."""
    if status is None:
        return []
    return [
        _sum("ipfix_records", "Flow records sent.", status.records),
        _sum("ipfix_messages", "Messages handed to the network.", status.messages),
        _sum("ipfix_bytes", "Bytes of these messages.", status.bytes),
        _one("ipfix_pending_records", "Flow records that wait, or are on their way.", status.pending),
        counter(
            "ipfix_lost_records",
            "Flow records that were not sent, by the place that lost them.",
            ("place",),
            {(place,): n for place, n in status.lost.items()},
        ),
        _sum("ipfix_refused_datagrams", "Answers that no collector listens.", status.refused_datagrams),
        _one("ipfix_up", "0 while the collector cannot be reached.", status.problem is None),
    ]


def engines(bus: bool, store: bool, age: float | None) -> list[Metric]:
    """Whether bus and store answer; `age`: seconds since the store last did."""
    return [
        _one("bus_up", "1 while nats-server is connected.", bus),
        _one("store_up", "0 where the store's last answer was an error.", store),
        _one("store_figures_age_seconds", "Age of the figures of services and labels on this page.", age),
    ]


def stream(found: Depth | None) -> list[Metric]:
    """What probes have sent and the collector has not stored yet."""
    return [
        _one("stream_messages", "Messages that wait to be stored.", found.messages if found else None),
        _one("stream_bytes", "Their size in the stream.", found.bytes if found else None),
    ]


def streams(found: StreamsTotals) -> list[Metric]:
    """What came of taps, and what became of it, since the server started."""
    return [
        _one("streams_connected", "Streams of packets that are connected now.", found.connected),
        _one("streams_readers", "Those who read a tap now, or get it handed on.", found.readers),
        _sum("streams_packets", "Packets that came.", found.packets),
        _sum("streams_bytes", "Bytes of these as on the wire, link header included.", found.bytes),
        _sum("streams_files", "Files that were begun.", found.files),
        counter(
            "streams_lost_packets",
            "Packets that were not stored (disk), or for which a reader had no room, by kind of reader.",
            ("place",),
            {(place,): n for place, n in found.lost.items()},
        ),
        counter(
            "streams_refused",
            "Connections that were refused or ended.",
            ("reason",),
            {(reason,): n for reason, n in found.refused.items()},
        ),
        _one("streams_up", "0 while packets cannot be taken or kept; the API's health says why.", found.up),
    ]


def _sum(name: str, text: str, value: int) -> Metric:
    return counter(name, text, (), {(): value})


def _one(name: str, text: str, value: float | None) -> Metric:
    """A gauge without labels; without a sample where nothing is known."""
    return gauge(name, text, (), {} if value is None else {(): float(value)})


def services(sums: Mapping[Group, Sequence[int]]) -> list[Metric]:
    """Traffic by tenant and service."""
    return _traffic("service", "workloads, by tenant and service", ("tenant", "service"), sums)


def labels(sums: Mapping[Group, Sequence[int]], shown: Iterable[Figures]) -> list[Metric]:
    """Traffic by label, and whose each is."""
    info: Values = {(str(f.label), f.name, f.tenant, f.service, f.host): 1.0 for f in shown}
    keys = ("label", "name", "tenant", "service", "host")
    return [
        *_traffic("label", "a label", ("label",), sums),
        gauge("label_info", "Whose a label is.", keys, info),
    ]


def _traffic(name: str, whose: str, keys: Sequence[str], sums: Mapping[Group, Sequence[int]]) -> list[Metric]:
    found = []
    for suspect in (False, True):
        for unit in ("packets", "bytes"):
            title = f"{name}_{'suspect_' if suspect else ''}{unit}"
            text = f"{unit.title()} of {whose}" + (
                ", suspect ones only." if suspect else ", suspect included."
            )
            values = {
                (*group, direction): counted[COUNTED.index((unit, suspect, direction))]
                for group, counted in sums.items()
                for direction in _DIRECTIONS
            }
            found.append(counter(title, text, (*keys, "direction"), values))
    return found


def losses(figures: Iterable[Figures]) -> list[Metric]:
    """Packets counted in totals whose flow detail was lost on their host, by place."""
    lost: Counter[tuple[str, ...]] = Counter({(place,): 0 for place in LOSSES})
    for found in figures:
        for place in LOSSES:
            lost[place,] += found.counters[f"{place}_packets"]
    text = "Packets counted in totals without flow detail, by the place that lost it."
    return [counter("flow_detail_lost_packets", text, ("place",), lost)]
