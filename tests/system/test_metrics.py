"""/metrics from a whole server, read by Prometheus' own parser, against what a fake probe sent."""

import asyncio
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from eastwest.bus.messages import FLOWS, TOTALS
from eastwest.export.config import ExportConfig, PrometheusConfig
from eastwest.store.engine import Database
from tests.system.bus_server import until
from tests.system.fake_probe import FakeProbe, flow_rows, workload
from tests.system.server_site import Site, site

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def _samples(s: Site) -> Samples:
    response = await s.api.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: Samples = {}
    for family in text_string_to_metric_families(response.text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def _value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"eastwest_{name}", frozenset(labels.items())]


def _named(samples: Samples, name: str) -> dict[frozenset[tuple[str, str]], float]:
    return {labels: value for (found, labels), value in samples.items() if found == f"eastwest_{name}"}


def test_page_shows_what_the_probe_sent(tmp_path: Path) -> None:
    """Host, service, collector and stream figures, exactly; the largest services by name."""

    async def scenario() -> None:
        async with site(tmp_path, export=ExportConfig(prometheus=PrometheusConfig(services=2))) as s:
            probe = FakeProbe(s.probe_bus)
            probe.lost = {1: 4}
            hostile = 'we"b\\\n{'
            await probe.workloads(
                workload(1, "web", service=hostile), workload(3, "db", tenant="b", service="db"),
                workload(4, "one", service="small"),
            )  # fmt: skip
            other = FakeProbe(s.probe_bus, "h2")
            await other.workloads(workload(2, "web2", service=hostile, host="h2"))
            await probe.flows([0, 1, 2, 3, 4], [1, 1000, 2000, 500, 20])
            await probe.totals()
            await probe.send(TOTALS, b"x")
            repeat = {"Ew-Host": "h", "Ew-Boot": "1", "Ew-Sequence": "2"}
            client = await s.probe_bus.connection()
            await client.jetstream().publish(f"{FLOWS}.h", flow_rows([1], [1]).tobytes(), headers=repeat)
            await s.settled(5)
            await probe.report(time.time_ns())

            async def reported() -> bool:
                return len(await s.get("hosts")) == 1

            await until(reported)
            got = await _samples(s)
            assert _named(got, "service_packets_total") == {
                frozenset({("tenant", t), ("service", name), ("direction", way)}): n
                for t, name, sent in (("a", hostile, 3000), ("b", "db", 500), ("other", "other", 21))
                for way, n in (("ingress", 0), ("egress", sent))
            }
            assert _value(got, "service_bytes_total", tenant="b", service="db", direction="egress") == 50_000
            assert sum(_named(got, "service_suspect_packets_total").values()) == 0
            assert _value(got, "flow_detail_lost_packets_total", place="flow_map_full") == 4
            assert _value(got, "host_packets_total", host="h", hook="port", direction="egress") == 3
            assert _value(got, "host_bytes_total", host="h", hook="port", direction="egress") == 4
            assert _value(got, "host_malformed_packets_total", host="h", reason="truncated") == 3
            unseen = "host_not_seen_by_cgroup_packets"
            assert _value(got, unseen, host="h", interface="eth0", direction="egress") == 2
            assert _value(got, "probe_program_packet_seconds", host="h", program="ingress") == 99.5e-9
            assert _value(got, "probe_cpu_ratio", host="h") == 0.015
            assert _value(got, "probe_resident_memory_bytes", host="h") == 1000
            assert (_value(got, "probe_problems", host="h"), _value(got, "probe_up", host="h")) == (1, 1)
            assert 0 <= _value(got, "probe_report_age_seconds", host="h") < 60
            assert _value(got, "collector_messages_total") == 6
            assert _value(got, "collector_stored_messages_total") == 4
            assert _value(got, "collector_stored_rows_total") == 5 + 5 + 4
            assert _value(got, "collector_stored_packets_total") == 3521
            assert _value(got, "collector_repeated_messages_total") == 1
            assert _value(got, "collector_malformed_messages_total", reason="size") == 1
            assert (_value(got, "stream_messages"), _value(got, "stream_bytes")) == (0, 0)
            ups = [_value(got, f"{part}_up") for part in ("bus", "store", "collector")]
            assert ups == [1, 1, 1]
            assert not _named(got, "label_packets_total")
            assert got["process_resident_memory_bytes", frozenset()] > 1 << 20

    asyncio.run(scenario())


def test_labels_have_series_only_where_asked_for(tmp_path: Path) -> None:
    """`per_label`: a series for each of the largest `labels` labels, and their names beside them."""

    async def scenario() -> None:
        config = PrometheusConfig(per_label=True, labels=2)
        async with site(tmp_path, export=ExportConfig(prometheus=config)) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "db"), workload(3, "one"))
            await probe.flows([1, 2, 3], [10, 20, 3])
            await probe.totals()
            await s.settled(3)
            got = await _samples(s)
            packets = _named(got, "label_packets_total")
            assert {k: v for k, v in packets.items() if v} == {
                frozenset({("label", label), ("direction", "egress")}): n
                for label, n in (("1", 10), ("2", 20), ("other", 3))
            }
            assert {dict(k)["name"] for k in _named(got, "label_info")} == {"web", "db"}
            await probe.flows([3], [100])
            await probe.totals()
            await s.settled(5)
            got = await _samples(s)
            assert _value(got, "label_packets_total", label="other", direction="egress") == 103

    asyncio.run(scenario())


def test_scrape_waits_for_nobody(tmp_path: Path) -> None:
    """With the bus gone and the database busy for minutes, the page comes with the last known figures."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.flows([7], [10])
            await probe.totals()
            await s.settled(2)
            before = await _samples(s)
            busy = asyncio.Event()
            loop = asyncio.get_running_loop()

            def occupy(_: Database) -> None:
                asyncio.run_coroutine_threadsafe(busy.wait(), loop).result()

            occupied = asyncio.create_task(s.store._engine.run(occupy))
            s.nats.kill()

            async def gone() -> bool:
                return not s.bus.connected

            await until(gone)
            try:
                async with asyncio.timeout(10):  # the busy database would keep it for ever
                    after = await _samples(s)
            finally:
                busy.set()
                await occupied
            assert _value(after, "bus_up") == 0
            assert not _named(after, "stream_messages")
            services = _named(before, "service_packets_total")
            assert services and _named(after, "service_packets_total") == services
            assert _value(after, "store_figures_age_seconds") > _value(before, "store_figures_age_seconds")

    asyncio.run(scenario())
