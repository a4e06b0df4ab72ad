"""The watcher on a real server: nats-server, chDB, API; what is fed is what an alert says, to the digit."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from eastwest.bus.messages import FLOWS, TOTALS, WATCHES_BUCKET, Evidence
from eastwest.store.alerts import StoredAlert
from eastwest.store.batch import Batch
from eastwest.watch import models
from eastwest.watch.config import AlertsConfig
from eastwest.watch.definition import Definition
from tests.system.bus_server import until
from tests.system.fake_probe import FakeProbe, flow_rows, mapped, total_rows, workload
from tests.system.server_site import ALL, Site, site
from tests.unit.test_watch_outputs import receiving

NS = 10**9
SECONDS = 60.0


class LiveProbe(FakeProbe):
    """Reports all the time, as of now, while it is entered."""

    interval = 0.1

    async def count(self, rows: NDArray[Any], last_seen: int | None = None) -> None:
        """Send flow rows, and the totals that they make, as one drain."""
        await self.send(FLOWS, rows.tobytes())
        self._count(rows["label"].tolist(), rows["packets"].tolist())
        totals = total_rows(self.seen)
        totals["last_seen"] = last_seen or time.time_ns()
        self.cut = await self.send(TOTALS, totals.tobytes())

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        async def report() -> None:
            while True:
                await self.report(time.time_ns())
                await asyncio.sleep(0.1)

        task = asyncio.create_task(report())
        try:
            yield
        finally:
            task.cancel()


def watch(name: str, condition: str, threshold: float = 0.0, **more: Any) -> Definition:
    told = {"name": name, "match": "name=web", "condition": condition, "threshold": threshold}
    return msgspec.convert(told | more, Definition)


async def alerts(s: Site, count: int, **query: Any) -> list[dict[str, Any]]:
    """The alerts, once there are so many."""

    async def there() -> bool:
        return len(await s.get("alerts", **query)) == count

    await until(there, SECONDS)
    found: list[dict[str, Any]] = await s.get("alerts", **query)
    return found


async def looked(s: Site, times: int = 3) -> None:
    """Until the watcher has looked so many times anew."""
    for _ in range(times):
        before = s.watcher.evaluations

        async def more(before: int = before) -> bool:
            return s.watcher.evaluations > before

        await until(more, SECONDS)


def recent(labels: list[int], packets: list[int], ago: float = 2.0) -> NDArray[Any]:
    return flow_rows(labels, packets, time.time_ns() - int(ago * NS))


def test_rates_and_shares_to_the_digit(tmp_path: Path) -> None:
    """600 packets of 100 bytes in a window of 60 s: 10/s and 1000 bytes/s; a fifth of them suspect."""
    watches = [
        watch("packets", "rate_above", 9.9, severity="critical"),
        watch("bytes", "rate_above", 999, unit="bytes", direction="egress"),
        watch("received", "rate_above", 0.1, direction="ingress"),
        watch("not-more", "rate_above", 10),
        watch("share", "suspect_share", 0.1),
        watch("no-share", "suspect_share", 0.2),
        watch("all", "rate_above", 0.1, match="service=none"),
    ]

    async def scenario() -> None:
        async with site(tmp_path, watches=watches) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "db"))
            rows = recent([1, 1, 2], [480, 120, 5000])
            rows["class"][1] = 1
            old = recent([1], [7777], ago=90)
            await probe.count(np.concatenate((rows, old)))
            async with probe.alive():
                found = await alerts(s, 3)
                by_watch = {alert["watch"]: alert for alert in found}
                assert set(by_watch) == {"packets", "bytes", "share"}
                alert = by_watch["packets"]
                for each in found:
                    models.Alert.model_validate(each)
                shown = ("kind", "state", "severity", "label", "name", "tenant", "host")
                whose = ["rate_above", "firing", "critical", 1, "web", "a", "h"]
                assert [alert[field] for field in shown] == whose
                assert (alert["figure"], alert["threshold"], alert["unit"]) == (10.0, 9.9, "packets/s")
                assert alert["text"] == ("web (label 1): sent and received 10 packets/s over 60 s, above 9.9")
                shown = await s.get("flows", label="label=1", **ALL)
                assert alert["flows"] == [flow for flow in shown if flow["packets"] in (480, 120)]
                alert = by_watch["bytes"]
                assert (alert["figure"], alert["unit"]) == (1000.0, "bytes/s")
                alert = by_watch["share"]
                assert (alert["figure"], alert["unit"]) == (0.2, "share")
                assert alert["text"] == "web (label 1): 120 of 600 packets suspect in 60 s (0.2), above 0.1"
                assert [flow["packets"] for flow in alert["flows"]] == [120]
                state = {row["name"]: (row["state"], row["workloads"]) for row in await s.get("watches")}
                assert state == {
                    "packets": ("firing", 1), "bytes": ("firing", 1), "share": ("firing", 1),
                    "received": ("ok", 1), "not-more": ("ok", 1), "no-share": ("ok", 1), "all": ("ok", 0),
                }  # fmt: skip
                assert (await s.get("health"))["problems"] == []

    asyncio.run(scenario())


def test_flows_behind_an_alert_are_whole(tmp_path: Path) -> None:
    """Forty cuts of one flow are one, with all its packets, times and flags, and hide no other."""

    async def scenario() -> None:
        async with site(tmp_path, watches=[watch("busy", "rate_above", 1)]) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"))
            long = recent([1] * 40, [100] * 40, ago=8)
            long["start"] += np.arange(40) * (NS // 10)
            long["end"], long["tcp_flags"] = long["start"] + NS // 10, 16
            long["tcp_flags"][0] = 2
            other = recent([1], [7])
            other["dst_port"] = 81
            await probe.count(np.concatenate([long, other]))
            async with probe.alive():
                (alert,) = await alerts(s, 1)
            shown = await s.get("flows", label="label=1", **ALL)
            cuts = [flow for flow in shown if flow["dst_port"] == 80]
            times = {"start": min(f["start"] for f in cuts), "end": max(f["end"] for f in cuts)}
            told = [(f["dst_port"], f["packets"], f["bytes"], f["tcp_flags"]) for f in alert["flows"]]
            assert told == [(80, 4000, 400_000, 18), (81, 7, 700, 0x1B)]
            assert alert["flows"][0].items() >= times.items()
            assert alert["flows"][1] in shown

    asyncio.run(scenario())


def test_a_rate_over_few_intervals_is_not_judged(tmp_path: Path) -> None:
    """Of a host that counts every 12 s: 59 s are too short, 60 s not; shares and silence may be shorter."""
    watches = [
        watch("short", "rate_above", 1, window_seconds=59),
        watch("low", "rate_below", 1, window_seconds=1),
        watch("long", "rate_above", 1, window_seconds=60),
        watch("share", "suspect_share", 0.1, window_seconds=59),
        watch("quiet", "silence", window_seconds=59),
    ]

    async def scenario() -> None:
        async with site(tmp_path, watches=watches) as s:
            probe = LiveProbe(s.probe_bus)
            probe.interval = 12.0
            await probe.workloads(workload(1, "web"))
            await probe.count(recent([1], [600_000], ago=1), last_seen=time.time_ns() + 3600 * NS)
            why = "host h counts every 12 s only; set window_seconds to 60 or more"
            async with probe.alive():
                assert [a["watch"] for a in await alerts(s, 1)] == ["long"]
                unknown = {row["name"]: row["unknown"] for row in await s.get("watches")}
                assert {n: u for n, u in unknown.items() if n != "quiet"} == {
                    "short": {"1": why}, "low": {"1": why}, "long": {}, "share": {},
                }  # fmt: skip
                assert why not in unknown["quiet"].values()
                assert (await s.get("health"))["problems"] == [
                    f"watch {name} cannot judge label 1: {why}" for name in ("low", "short")
                ]

    asyncio.run(scenario())


def test_an_alert_ends_survives_a_restart_and_is_listed_afterwards(tmp_path: Path) -> None:
    """Added by the API, it is there after a restart, with its watch; removing the watch ends it."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"))
            await probe.count(recent([1], [600]))
            response = await s.api.post(
                "/api/v1/watches",
                json={"name": "busy", "match": "name=w*", "condition": "rate_above", "threshold": 1.0},
            )
            assert (response.status_code, response.json()["source"]) == (200, "api")
            async with probe.alive():
                (first,) = await alerts(s, 1)
        async with site(tmp_path) as s:
            probe = LiveProbe(s.probe_bus, boot=2)
            async with probe.alive():
                await looked(s)
                (again,) = await alerts(s, 1)
                assert {**again, "last_seen": None} == {**first, "last_seen": None}
                assert (await s.api.delete("/api/v1/watches/busy")).json() == {"removed": "busy"}
                assert await alerts(s, 0) == []
                (over,) = await alerts(s, 1, all="true")
                assert (over["id"], over["state"], over["figure"]) == (first["id"], "resolved", 10.0)
                assert over["resolved_at"] > over["last_seen"] >= over["first_seen"]
                assert await s.get("alerts", all="true", since="2999-01-01T00:00:00Z") == []
                assert (await s.api.delete("/api/v1/watches/busy")).status_code == 404

    asyncio.run(scenario())


def test_silence_and_too_little_are_told_only_where_the_host_is_there(tmp_path: Path) -> None:
    """Of a host that is away nothing is said but that; of a workload just come, neither."""
    watches = [
        watch("quiet", "silence", window_seconds=1, match="service=web"),
        watch("low", "rate_below", 100, window_seconds=1, match="service=web"),
    ]

    async def scenario() -> None:
        async with site(tmp_path, watches=watches) as s:
            here, away = LiveProbe(s.probe_bus, "h"), LiveProbe(s.probe_bus, "g")
            now = time.time_ns()
            await here.workloads(workload(1, "web", first_seen=now), workload(2, "gone", present=False))
            await away.workloads(workload(3, "far", host="g"))
            await here.count(recent([1], [10], ago=30), last_seen=now - 30 * NS)
            await away.report(now - 100 * NS)
            async with here.alive():
                found = {alert["kind"]: alert for alert in await alerts(s, 2)}
                assert {alert["label"] for alert in found.values()} == {1}
                assert found["silence"]["unit"] == "seconds"
                assert 30 <= found["silence"]["figure"] < 30 + SECONDS
                assert found["silence"]["text"] == "web (label 1): no packet for 1 s"
                assert [flow["packets"] for flow in found["silence"]["flows"]] == [10]
                assert (found["rate_below"]["figure"], found["rate_below"]["flows"]) == (0.0, [])
                unknown = {row["name"]: row["unknown"] for row in await s.get("watches")}
                assert all(row["3"].startswith("host g has not reported for 1") for row in unknown.values())
                problems = (await s.get("health"))["problems"]
                problem, _ = [problem for problem in problems if problem.startswith("watch ")]
                assert problem.startswith("watch low cannot judge label 3: host g has not reported for 1")
            await here.workloads(workload(9, "new", first_seen=now))
            await looked(s)
            assert len(await s.get("alerts")) == 2

    asyncio.run(scenario())


def test_the_bus_away_is_not_silence(tmp_path: Path) -> None:
    """With nats-server dead no alert is raised and none ended; the API says what cannot be judged."""
    watches = [watch("quiet", "silence", window_seconds=1), watch("busy", "rate_above", 1)]

    async def scenario() -> None:
        async with site(tmp_path, watches=watches) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"))
            await probe.count(recent([1], [600], ago=0), last_seen=time.time_ns() + 3600 * NS)
            async with probe.alive():
                await alerts(s, 1)
            s.nats.kill()

            async def unknown() -> bool:
                return all(row["unknown"] for row in await s.get("watches"))

            await until(unknown, SECONDS)
            await looked(s)
            (alert,) = await s.get("alerts")
            assert (alert["watch"], alert["state"]) == ("busy", "firing")

    asyncio.run(scenario())


def test_a_host_whose_rows_come_late_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports, and nothing of it is stored: health and the watch say that, not that it is silent."""
    monkeypatch.setattr("eastwest.watch.horizon._LEAST_SECONDS", 1.0)

    async def scenario() -> None:
        async with site(tmp_path, collecting=False, watches=[watch("busy", "rate_above", 1)]) as s:
            probe = LiveProbe(s.probe_bus)
            here = Batch("h", 1, 1_000_000, "workloads", workloads=[workload(1, "web")])
            await s.store.write([here])
            await probe.count(recent([1], [600]))
            async with probe.alive():

                async def told() -> bool:
                    problems = (await s.get("health"))["problems"]
                    return [problem.partition(": what ")[0] for problem in problems] == [
                        "host h: its rows come late",
                        "watch busy cannot judge label 1",
                    ]

                await until(told, SECONDS)
                (state,) = await s.get("watches")
                assert state["unknown"]["1"].startswith("what host h counted ")

    asyncio.run(scenario())


def test_new_peers_are_those_never_met_in_the_time_learned(tmp_path: Path) -> None:
    """One alert with all of them; who was met before, multicast and what is not IP are none."""
    watches = [watch("peers", "new_peer", learn_seconds=3600, match="")]

    def row(label: int, dst: bytes, ago: float) -> NDArray[Any]:
        rows = recent([label], [1], ago)
        rows["dst"] = mapped(dst)
        return rows

    async def scenario() -> None:
        async with site(tmp_path, watches=watches) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "young"))
            arp = row(1, b"\x0a\x00\x00\x07", 1)
            arp["protocol"] = 0x0806
            back = row(1, b"\x0a\x00\x00\x01", 2)
            back["src"], back["direction"] = mapped(b"\x0a\x00\x00\x08"), 0
            await probe.count(
                np.concatenate(
                    (
                        row(1, b"\x0a\x00\x00\x02", 7200),
                        row(1, b"\x0a\x00\x00\x02", 1800),
                        row(1, b"\x0a\x00\x00\x03", 180),
                        row(1, b"\x0a\x00\x00\x05", 7200),
                        row(2, b"\x0a\x00\x00\x02", 1800),
                    )
                )
            )
            async with probe.alive():
                await looked(s)
                assert await s.get("alerts") == []
                await probe.count(
                    np.concatenate(
                        (
                            row(1, b"\x0a\x00\x00\x02", 2),
                            row(1, b"\x0a\x00\x00\x03", 2),
                            row(1, b"\x0a\x00\x00\x05", 2),
                            back,
                            row(1, b"\xe0\x00\x00\xfb", 2),
                            row(1, b"\xff\xff\xff\xff", 2),
                            arp,
                            row(2, b"\x0a\x00\x00\x09", 2),
                        )
                    )
                )
                (alert,) = await alerts(s, 1)
                assert (alert["label"], alert["figure"], alert["unit"]) == (1, 2.0, "peers")
                assert alert["text"] == "web (label 1): new peer 10.0.0.5, 10.0.0.8"
                assert {flow["dst"] for flow in alert["flows"]} == {"10.0.0.5", "10.0.0.1"}
                (state,) = await s.get("watches")
                assert state["unknown"] == {"2": "its peers are not known for 3600 s yet"}
                assert (await s.get("health"))["problems"] == []  # it only needs time
                await looked(s)
                assert len(await s.get("alerts")) == 1

    asyncio.run(scenario())


def test_one_workload_that_meets_thousands_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3000 addresses those met last are told of, and that there are more; the other's one is told of."""
    monkeypatch.setattr("eastwest.watch.peers._MOST_PEERS", 5)
    monkeypatch.setattr("eastwest.watch.peers._MOST_ASKED", 6)
    watches = [watch("peers", "new_peer", learn_seconds=3600, match="")]

    async def scenario() -> None:
        async with site(tmp_path, watches=watches) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "db"))
            await probe.count(recent([1, 2], [1, 1], ago=7200))
            many = np.concatenate([recent([1] * 3000, [1] * 3000, ago=10), recent([2], [1])])
            many["dst"] = [mapped(b"\x0a\x01" + number.to_bytes(2, "big")) for number in range(3001)]
            many["start"][1000:1005] += NS
            async with probe.alive():
                await looked(s)
                await probe.count(many)
                found = {alert["name"]: alert for alert in await alerts(s, 2)}
                assert found["db"]["text"] == "db (label 2): new peer 10.1.11.184"
                assert found["web"]["text"] == (
                    "web (label 1): new peer 10.1.3.232, 10.1.3.233, 10.1.3.234, 10.1.3.235, 10.1.3.236;"
                    " it meets so many that only the last 5 at a time are looked at"
                )
                assert (await s.get("health"))["problems"] == [
                    "watch peers does not look at all of label 1: it met more than 5 new addresses within"
                    " 60 s; shorten window_seconds, or leave it out of match"
                ]

    asyncio.run(scenario())


def test_evidence_makes_one_alert_per_label_and_entry(tmp_path: Path) -> None:
    """Three packets of one entry are one alert, which goes on over a restart; another entry is another."""
    seen = Evidence(
        1_800_000_000 * NS, 1, "veth0", "egress", "192.0.2.0/24", "10.0.0.1", "192.0.2.9", 1000, 80, 6, True,
        40, b"E\x00",
    )  # fmt: skip

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"))
            await s.settled(1)
            await looked(s)
            await probe.evidence(seen, seen)
            (first,) = await alerts(s, 1)
            models.Alert.model_validate(first)
            assert first["text"] == (
                "web (label 1): suspect traffic (entry 192.0.2.0/24): egress 10.0.0.1 port 1000 to"
                " 192.0.2.9 port 80, protocol 6, dropped; 2 packets kept as evidence"
            )
            assert (first["kind"], first["severity"], first["figure"]) == ("suspect", "critical", 2.0)
            assert first["evidence"] == [
                {
                    "time": "2027-01-15T08:00:00.000000000Z", "label": 1, "port": "veth0",
                    "direction": "egress", "entry": "192.0.2.0/24", "src": "10.0.0.1", "dst": "192.0.2.9",
                    "src_port": 1000, "dst_port": 80, "protocol": 6, "dropped": True,
                    "length": 40, "packet": "RQA=",
                }
            ] * 2  # fmt: skip
        async with site(tmp_path) as s:
            probe = LiveProbe(s.probe_bus, boot=2)
            await probe.evidence(seen, msgspec.structs.replace(seen, entry="203.0.113.0/24"))

            async def three() -> bool:
                return [a["figure"] for a in await s.get("alerts") if a["id"] == first["id"]] == [3.0]

            await until(three, SECONDS)
            other, again = await alerts(s, 2)
            assert (other["subject"], other["figure"]) == ("203.0.113.0/24", 1.0)
            assert len(again["evidence"]) == 3

    asyncio.run(scenario())


def test_an_old_table_raises_nothing(tmp_path: Path) -> None:
    """A store full of old flows, met by a new server with every kind of watch: no alert, no complaint."""
    watches = [
        watch("above", "rate_above", 1, match=""),
        watch("share", "suspect_share", 0.001, match=""),
        watch("peers", "new_peer", match=""),
    ]

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(*(workload(label, f"w{label}") for label in range(1, 101)))
            for hour in range(20):
                rows = flow_rows(
                    list(range(1, 101)) * 40, [1000] * 4000, time.time_ns() - (hour + 1) * 3600 * NS
                )
                rows["dst_port"] = np.arange(4000)
                rows["class"], rows["tcp_flags"] = 1, 2
                await probe.count(rows)
            await s.settled(41)
        async with site(tmp_path, watches=watches) as s, LiveProbe(s.probe_bus, boot=2).alive():
            await looked(s, 5)
            assert await s.get("alerts", all="true") == []

    asyncio.run(scenario())


def test_what_has_gone_just_now_is_still_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of it names it, and a silence of its service holds; what went long ago is not even read."""
    seen = Evidence(1, 1, "veth0", "egress", "e", "10.0.0.1", "192.0.2.9", 1, 2, 6, False, 40, b"E")

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"))
            quiet = {"match": "service=web", "duration": "1h"}
            assert (await s.api.post("/api/v1/silences", json=quiet)).status_code == 200
            await probe.workloads(workload(1, "web", present=False))
            await s.settled(2)
            await probe.evidence(seen)
            (alert,) = await alerts(s, 1)
            assert (alert["name"], alert["state"]) == ("web", "silenced")
        monkeypatch.setattr("eastwest.watch.watcher._GONE_SECONDS", 0)
        async with site(tmp_path) as s:
            await looked(s)
            (alert,) = await s.get("alerts")
            assert (alert["name"], alert["state"]) == ("web", "firing")

    asyncio.run(scenario())


def test_watches_are_refused_with_a_reason(tmp_path: Path) -> None:
    """Of the API in its one form; what somebody else put on the bus is left out, and health says so."""
    good = {"name": "w", "match": "", "condition": "silence"}

    async def scenario() -> None:
        async with site(tmp_path, watches=[watch("fixed", "silence")]) as s:
            for body, code, said in (
                (good | {"colour": 1}, 400, "there is no field 'colour'"),
                ({"name": "w", "condition": "silence"}, 400, "match must be a selector of at most 1000"),
                (good | {"condition": "loud"}, 400, "condition must be rate_above, rate_below, new_peer"),
                (good | {"match": "colour=red"}, 400, "watch 'w': 'colour=red' is not a selector condition"),
                (good | {"window_seconds": "1"}, 400, "window_seconds must be a number of seconds"),
                (good | {"condition": "rate_above"}, 400, "watch 'w': rate_above with threshold 0.0"),
                (good | {"name": "fixed"}, 400, "watch 'fixed' is in the settings file"),
                ([], 400, "the request's body is no JSON object"),
            ):
                response = await s.api.post("/api/v1/watches", json=body)
                assert (response.status_code, set(response.json())) == (code, {"error", "remedy"})
                assert response.json()["error"].startswith(said), response.text
            assert (await s.api.delete("/api/v1/watches/fixed")).status_code == 400
            await s.bus.bucket(WATCHES_BUCKET).put("bad", b'{"name": "bad"}')

            async def told() -> bool:
                problems = (await s.get("health"))["problems"]
                return any(p.startswith("bad on the bus cannot be used: Object missing") for p in problems)

            await until(told, SECONDS)
            assert [row["name"] for row in await s.get("watches")] == ["fixed"]

    asyncio.run(scenario())


def test_silences_keep_alerts_quiet_and_end(tmp_path: Path) -> None:
    """By id or by selector; listed as silenced meanwhile, firing again afterwards."""

    async def scenario() -> None:
        async with site(tmp_path, watches=[watch("busy", "rate_above", 1, match="")]) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "db", service="db"))
            await probe.count(recent([1, 2], [600, 600]))

            async def states(*expected: str) -> None:
                async def so() -> bool:
                    found = await s.get("alerts")
                    return tuple(a["state"] for a in sorted(found, key=lambda a: a["label"])) == expected

                await until(so, SECONDS)

            async def post(**body: object) -> dict[str, Any]:
                response = await s.api.post("/api/v1/silences", json=body)
                assert response.status_code == 200, response.text
                answer: dict[str, Any] = response.json()
                return answer

            async with probe.alive():
                await states("firing", "firing")
                by_selector = await post(match="service=d*", duration="1h", comment="upgrade")
                await states("firing", "silenced")
                (web,) = [a for a in await s.get("alerts") if a["label"] == 1]
                by_id = await post(alert=web["id"], duration="2h")
                await states("silenced", "silenced")
                assert await s.get("silences") == [by_selector, by_id]
                assert (await s.api.delete(f"/api/v1/silences/{by_selector['id']}")).status_code == 200
                await states("silenced", "firing")
                await post(match="service=db", duration="1s")
                await states("silenced", "silenced")
                await states("silenced", "firing")
                assert await s.get("silences") == [by_id]
                for body in (
                    {"duration": "1h"},
                    {"alert": "x", "duration": "soon"},
                    {"alert": "x", "duration": "0s"},
                ):
                    assert (await s.api.post("/api/v1/silences", json=body)).status_code == 400
                wrong = await s.api.post("/api/v1/silences", json={"alert": "x", "duration": "1h"})
                assert (wrong.status_code, wrong.json()["error"]) == (404, "there is no open alert 'x'")

    asyncio.run(scenario())


def test_people_are_told_of_the_beginning_and_the_end(tmp_path: Path) -> None:
    """To webhook and syslog, the document that the API shows; nobody is told of what is silenced."""

    async def scenario() -> None:
        with receiving() as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log:
            log.bind(("127.0.0.1", 0))
            log.settimeout(SECONDS)
            outputs = AlertsConfig(
                interval_seconds=0.1,
                webhook_url=receiver.url,
                syslog=f"udp://127.0.0.1:{log.getsockname()[1]}",
            )
            async with site(tmp_path, alerts=outputs) as s:
                probe = LiveProbe(s.probe_bus)
                await probe.workloads(workload(1, "web"), workload(2, "db", service="db"))
                await probe.count(recent([1, 2], [600, 600]))
                quiet = {"match": "service=db", "duration": "1h"}
                assert (await s.api.post("/api/v1/silences", json=quiet)).status_code == 200
                await looked(s)
                busy = {"name": "busy", "match": "", "condition": "rate_above", "threshold": 1.0}
                assert (await s.api.post("/api/v1/watches", json=busy)).status_code == 200
                async with probe.alive():
                    await alerts(s, 2)
                    (shown,) = [a for a in await s.get("alerts") if a["state"] == "firing"]
                    assert (await s.api.delete("/api/v1/watches/busy")).status_code == 200
                    await alerts(s, 0)

                    async def both() -> bool:
                        return len(receiver.received) == 2

                    await until(both, SECONDS)
                began, ended = (body for _, body in receiver.received)
                assert began | {"last_seen": 0} == shown | {"last_seen": 0}
                assert (ended["id"], ended["state"]) == (began["id"], "resolved")
                first, second = log.recv(4096).decode(), log.recv(4096).decode()
                assert first.startswith("<132>1 ") and 'state="firing"' in first
                assert second.startswith("<133>1 ") and 'state="resolved"' in second
                log.setblocking(False)
                with pytest.raises(BlockingIOError):
                    log.recv(4096)
                assert len(receiver.received) == 2

    asyncio.run(scenario())


def test_an_alert_of_another_version_ends_nothing(tmp_path: Path) -> None:
    """What cannot be read is left out; the rest is watched as ever."""

    async def scenario() -> None:
        async with site(tmp_path, watches=[watch("busy", "rate_above", 1)]) as s:
            await s.store.put_alerts([StoredAlert("old", True, time.time_ns(), b'{"id": "old"}')])
        async with site(tmp_path, watches=[watch("busy", "rate_above", 1)]) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"))
            await probe.count(recent([1], [600]))
            async with probe.alive():
                (alert,) = await alerts(s, 1)
                assert alert["watch"] == "busy"
                assert len(await s.get("alerts", all="true")) == 1

    asyncio.run(scenario())
