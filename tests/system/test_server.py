"""The server's whole path: nats-server → collector → chDB → API, with numbers made by a fake probe."""

import asyncio
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from eastwest.bus.messages import (
    EVIDENCE,
    FACTS_BUCKET,
    FLOWS,
    HOSTS_BUCKET,
    TOTALS,
    WORKLOADS,
    Evidence,
    Facts,
)
from eastwest.errors import ConfigError
from eastwest.manager import models
from eastwest.manager.fleet import Fleet
from eastwest.manager.manager import Manager, ManagerConfig
from tests.system.bus_server import until
from tests.system.fake_probe import FakeProbe, flow_rows, workload
from tests.system.server_site import ALL, site


def test_a_row_becomes_an_answer(tmp_path: Path) -> None:
    """Flows, totals and workloads arrive as labels, flows, ports, workloads and minutes, exactly."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "db", present=False))
            await probe.flows([1, 2, 0], [10, 20, 30])
            await probe.totals()
            await s.settled(3)

            labels = await s.get("labels")
            assert [(x["label"], x["name"], x["egress_packets"], x["egress_bytes"]) for x in labels] == [
                (0, "unattributed", 30, 3000),
                (1, "web", 10, 1000),
            ]
            assert set(labels[0]) == set(models.Label.model_fields)
            assert labels[1]["ports"] == ["veth1"]
            assert labels[1]["first_seen"] == "2023-11-14T22:13:20.000000000Z"
            assert labels[1]["last_seen"] == "2023-11-14T22:13:25.000000000Z"
            everything = await s.get("labels", all="true")
            assert [(x["label"], x["egress_packets"]) for x in everything] == [(0, 30), (1, 10), (2, 20)]

            (flow,) = await s.get("flows", label="name=web", **ALL)
            assert flow == {
                "start": "2023-11-14T22:13:20.000000000Z", "end": "2023-11-14T22:13:21.000000000Z",
                "host": "h", "port": "veth0", "label": 1, "class": "normal", "direction": "egress",
                "src": "10.0.0.1", "dst": "10.0.0.2", "src_port": 1000, "dst_port": 80, "protocol": 6,
                "packets": 10, "bytes": 1000, "tcp_flags": 27,
                "community_id": "1:lWJQYXirSlmWE2qTFPykhczY8U4=",
            }  # fmt: skip
            models.Flow.model_validate(flow)
            assert [f["packets"] for f in await s.get("flows", **ALL)] == [30, 20, 10]
            lines = await s.api.get("/api/v1/flows/lines", params={"limit": 2, **ALL})
            assert lines.headers["content-type"] == "application/x-ndjson"
            assert [json.loads(line) for line in lines.text.splitlines()] == (
                await s.get("flows", limit=2, **ALL)
            )
            assert (
                await s.api.get("/api/v1/flows/lines", params={"until": "2021-01-01T00:00:00Z"} | ALL)
            ).text == ""
            assert [f["packets"] for f in await s.get("flows", limit=1, **ALL)] == [30]
            assert await s.get("flows") == []
            assert await s.get("flows", label="tenant=nobody", **ALL) == []
            assert [f["label"] for f in await s.get("flows", label="port=veth1", **ALL)] == [1]
            assert await s.get("flows", until="2021-01-01T00:00:00Z", **ALL) == []

            assert [(m["minute"], m["label"], m["packets"]) for m in await s.get("minutes", **ALL)] == [
                ("2023-11-14T22:13:00Z", 0, 30),
                ("2023-11-14T22:13:00Z", 1, 10),
                ("2023-11-14T22:13:00Z", 2, 20),
            ]
            (web,) = await s.get("workloads")
            assert set(web) == {f.alias or n for n, f in models.Workload.model_fields.items()}
            assert (web["name"], web["class"], web["past_ports"]) == ("web", "normal", ["old0"])
            assert [w["name"] for w in await s.get("workloads", all="true")] == ["web", "db"]

            await probe.report(time.time_ns())

            async def reported() -> bool:
                return len(await s.get("hosts")) == 1

            await until(reported)
            (host,) = await s.get("hosts")
            assert host["alive"] is True
            assert host["started_at"] == "2023-11-14T22:13:20.000000000Z"
            assert host["cost"]["sampled_at"] is None
            port, interface = await s.get("ports")
            assert (port["port"], port["label"], port["name"], port["mac"]) == (
                "veth1", 1, "web", "02:00:00:00:00:01",
            )  # fmt: skip
            assert (interface["port"], interface["label"], interface["ingress_not_seen_by_cgroup"]) == (
                "eth0", None, 1,
            )  # fmt: skip
            health = await s.get("health")
            assert (health["status"], health["problems"]) == ("ok", [])
            assert health["collector"]["stored_rows"] == 3 + 3 + 2
            assert health["server"]["memory_bytes"] > 1 << 20
            assert all(entry["balanced"] for entry in await s.get("ledger"))

    asyncio.run(scenario())


def test_who_talks_most_is_answered(tmp_path: Path) -> None:
    """Of all that is kept unless a time is given; by label, and no more than asked for."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "db", present=False))
            await probe.flows([1, 2, 0], [10, 20, 30])
            await s.settled(2)
            (talk,) = await s.get("talkers", label="name=web")
            assert talk == {"label": 1, "src": "10.0.0.1", "dst": "10.0.0.2", "packets": 10, "bytes": 1000}
            models.Talker.model_validate(talk)
            assert [t["packets"] for t in await s.get("talkers")] == [30, 20, 10]
            assert [t["packets"] for t in await s.get("talkers", limit=1)] == [30]
            assert await s.get("talkers", since="5m") == []
            assert await s.get("talkers", until="2023-11-14T22:13:21Z") == []
            assert len(await s.get("talkers", since="2023-11-14T22:13:21Z", label="port=veth1")) == 1

    asyncio.run(scenario())


def test_repeats_and_malformed_messages_are_counted_and_lose_nothing_else(tmp_path: Path) -> None:
    """Each bad message is counted by its reason and never comes again; its neighbours are stored."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.flows([1], [10])
            client = await s.probe_bus.connection()
            rows = flow_rows([1], [99])

            async def raw(subject: str, payload: bytes, **headers: str) -> None:
                told = {"Ew-Host": "h", "Ew-Boot": "1", "Ew-Sequence": "77"} | headers
                await client.jetstream().publish(subject, payload, headers=told)

            wrong = rows.copy()
            wrong["direction"] = 2
            await raw(f"{FLOWS}.h", rows.tobytes()[:-1])
            await raw(f"{FLOWS}.h", wrong.tobytes())
            await raw(f"{FLOWS}.h", rows.tobytes(), **{"Ew-Sequence": "-1"})
            await raw(f"{FLOWS}.h", rows.tobytes(), **{"Ew-Host": "h i"})
            await raw(f"{FLOWS}.other", rows.tobytes())
            await raw("eastwest.flows.h.x", rows.tobytes())
            await raw(f"{TOTALS}.h", b"x")
            await raw(f"{WORKLOADS}.h", b"{")
            await raw(f"{WORKLOADS}.h", msgspec.json.encode([workload(1, "x", last_seen=-1)]))
            await raw(f"{FLOWS}.h", rows.tobytes(), **{"Ew-Sequence": "1"})  # repeats the first
            await probe.flows([1], [5])
            await probe.totals()
            await s.settled(13)
            status = s.collector.status
            assert status.malformed == {"size": 2, "values": 2, "headers": 2, "subject": 2, "json": 1}
            assert (status.repeats, status.stored_messages, status.stored_packets) == (1, 3, 15)
            assert (await s.ledger())[1] == (15, 15, 0, {}, True)
            await s.probe_bus.bucket(HOSTS_BUCKET).put("h", b"{")
            assert await s.get("hosts") == []

    asyncio.run(scenario())


def test_evidence_is_stored_once_and_read_on_from_the_last(tmp_path: Path) -> None:
    """Two packets and, later, one; repeats refused, a malformed message counted, old days dropped."""
    seen = Evidence(
        1, 7, "veth0", "egress", "192.0.2.0/24", "10.0.0.1", "192.0.2.9", 1, 2, 6, False, 40, b"E"
    )

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.evidence(seen, seen)
            await s.settled(1)
            first = await s.store.evidence(0)
            assert [(w.host, w.evidence) for w in first] == [("h", seen), ("h", seen)]
            later = msgspec.structs.replace(seen, dropped=True)
            await probe.evidence(later)
            client = await s.probe_bus.connection()
            told = {"Ew-Host": "h", "Ew-Boot": "1", "Ew-Sequence": "1"}
            again = msgspec.json.encode([seen])
            await client.jetstream().publish(f"{EVIDENCE}.h", again, headers=told)
            await probe.send(EVIDENCE, b"{")
            await s.settled(4)
            assert [w.evidence for w in await s.store.evidence(first[-1].received)] == [later]
            assert (s.collector.status.repeats, s.collector.status.malformed) == (1, {"json": 1})
            await s.store.expire(datetime.now(UTC).date() + timedelta(9))
            assert await s.store.evidence(0) == []

    asyncio.run(scenario())


def test_label_set_merges_and_is_seen_by_the_probe(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "twin"), workload(3, "twin"))
            await s.settled(1)

            async def post(name: str, body: object) -> tuple[int, Any]:
                response = await s.api.post(f"/api/v1/labels/{name}", json=body)
                return response.status_code, response.json()

            assert (await post("web", {"tenant": "blue", "service_id": 9}))[0] == 200
            status, answer = await post("1", {"tenant": "red", "class": "suspect"})
            assert (status, answer["label"], answer["name"]) == (200, 1, "web")
            watch = s.probe_bus.bucket(FACTS_BUCKET).watch()
            async with asyncio.timeout(10):
                key, document = await anext(watch)
            await watch.aclose()
            assert key == "1" and document is not None
            assert msgspec.json.decode(document, type=Facts) == Facts(
                tenant="red", service_id=9, traffic_class="suspect"
            )
            for name, body, code, text in (
                ("nobody", {}, 404, "there is no workload 'nobody'"),
                ("twin", {}, 400, "'twin' names several workloads"),
                ("web", {"colour": "red"}, 400, "there is no fact 'colour'"),
                ("web", {"service_id": -1}, 400, "service_id must be 0 to 4294967295"),
                ("web", {"class": "good"}, 400, "class must be normal or suspect"),
                ("web", ["x"], 400, "the request's body is no JSON object"),
            ):
                status, answer = await post(name, body)
                assert status == code
                assert set(answer) == {"error", "remedy"}
                assert answer["error"].startswith(text)

    asyncio.run(scenario())


def test_bad_requests_are_refused_in_one_form(tmp_path: Path) -> None:
    """Every refusal is JSON with error and remedy."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            post = {"Content-Type": "application/json"}
            for method, path, kwargs, code in (
                ("GET", "/api/v1/labels?al=true", {}, 400),
                ("GET", "/api/v1/hosts?x=1", {}, 400),
                ("GET", "/api/v1/flows?since=yesterday", {}, 400),
                ("GET", "/api/v1/flows?since=2026-01-01T00:00:00", {}, 400),
                ("GET", "/api/v1/flows?label=colour%3Dred", {}, 400),
                ("GET", "/api/v1/flows?limit=0", {}, 400),
                ("GET", "/api/v1/nothing", {}, 404),
                ("DELETE", "/api/v1/labels", {}, 405),
                ("GET", "/api/v1/labels", {"headers": {"Host": "evil.example"}}, 403),
                ("POST", "/api/v1/labels/1", {"content": b"x=1"}, 415),
                ("POST", "/api/v1/labels/1", {"content": b"{" * 100_000, "headers": post}, 413),
                ("POST", "/api/v1/labels/1", {"content": b"{", "headers": post}, 400),
            ):
                response = await s.api.request(method, path, **kwargs)
                assert response.status_code == code, (path, response.text)
                assert set(response.json()) == {"error", "remedy"}
            document = (await s.api.get("/openapi.json")).json()
            assert "/api/v1/ledger" in document["paths"]

    asyncio.run(scenario())


def test_api_stays_up_while_nats_server_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.flows([1], [10])
            await probe.totals()
            await s.settled(2)
            s.nats.kill()

            async def degraded() -> bool:
                return (await s.get("health"))["status"] == "degraded"

            await until(degraded)
            assert [x["egress_packets"] for x in await s.get("labels")] == [0, 10]
            response = await s.api.get("/api/v1/ledger", timeout=30)
            assert response.status_code == 503
            assert "start it" in response.json()["remedy"]
            s.nats.start()

            async def well() -> bool:
                return (await s.get("health"))["status"] == "ok"

            await until(well)
            await probe.flows([1], [1])
            await probe.totals()
            await s.settled(4)
            assert (await s.ledger())[1] == (11, 11, 0, {}, True)

    asyncio.run(scenario())


def test_listening_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """Port in use, open address without token, nonsense: one line each."""

    async def scenario() -> None:
        async with site(tmp_path) as s:

            async def enter(listen: str, token_file: Path | None = None) -> None:
                config = ManagerConfig(listen=listen, token_file=token_file)
                async with Manager(config, s.bus, s.store, Fleet(s.bus)):
                    pass

            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
                with pytest.raises(ConfigError, match=r"cannot listen on .*; stop what uses the port"):
                    await enter(f"127.0.0.1:{port}")
            with pytest.raises(ConfigError, match="set token_file"):
                await enter("0.0.0.0:0")
            with pytest.raises(ConfigError, match="write ADDRESS:PORT"):
                await enter("nowhere")
            with pytest.raises(ConfigError, match="token file"):
                await enter("0.0.0.0:0", tmp_path / "absent")
            secret = tmp_path / "token"
            secret.write_text("0123456789abcdef\n")
            open_config = ManagerConfig(listen="0.0.0.0:0", token_file=secret)
            async with (
                Manager(open_config, s.bus, s.store, Fleet(s.bus)) as open_manager,
                httpx.AsyncClient(trust_env=False) as api,
            ):
                url = open_manager.url.replace("0.0.0.0", "127.0.0.1") + "/api/v1/labels"
                assert (await api.get(url)).status_code == 401
                header = {"Authorization": "Bearer 0123456789abcdef"}
                assert (await api.get(url, headers=header)).status_code == 200

    asyncio.run(scenario())


def test_json_of_the_ledger_has_the_contract_keys(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path) as s:
            response = await s.api.get("/api/v1/ledger")
            assert json.loads(response.content) == [
                {
                    "label": 0, "seen_packets": 0, "stored_packets": 0, "pending_packets": 0,
                    "lost": {}, "balanced": True,
                }
            ]  # fmt: skip

    asyncio.run(scenario())
