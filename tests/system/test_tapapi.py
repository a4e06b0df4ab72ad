"""Orders to copy packets: checked, kept on the bus, renewed, taken back; and what probes say of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eastwest.bus.taps import TAPS_BUCKET, TapOrder, TapPoint, TapsAnswer, TapStream, taps_subject
from tests.system.bus_server import until
from tests.system.fake_probe import FakeProbe, workload
from tests.system.server_site import Site, site

ORDER = {"name": "web", "selector": "service=web,tenant=a", "filter": "tcp port 80", "to": "app.example:9000"}


def with_site(tmp_path: Path, test: Callable[[Site], Awaitable[None]]) -> None:
    async def main() -> None:
        async with site(tmp_path) as s:
            await test(s)

    asyncio.run(main())


async def add(s: Site, **fields: Any) -> dict[str, Any]:
    response = await s.api.post("/api/v1/taps", json=ORDER | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def ordered(s: Site, name: str = "web") -> TapOrder | None:
    """What a probe finds on the bus."""
    found = await s.bus.bucket(TAPS_BUCKET).get(name)
    return msgspec.json.decode(found[0], type=TapOrder) if found else None


async def says(s: Site, answer: Callable[[], bytes]) -> None:
    """Have a probe of host h that is alive answer so."""
    probe = FakeProbe(s.probe_bus)
    await probe.workloads(workload(1, "web"), workload(2, "db", service="db"))
    await probe.report(time.time_ns())

    async def serve(_: bytes) -> bytes:
        return answer()

    await s.probe_bus.serve(taps_subject("h"), serve)
    await s.settled(1)

    async def alive() -> bool:
        return any(host["alive"] for host in await s.get("hosts"))

    await until(alive)


def test_an_order_is_kept_with_a_secret_that_nobody_is_told(tmp_path: Path) -> None:
    """What a probe needs is on the bus; who asks the API learns everything but the key."""

    async def test(s: Site) -> None:
        before = time.time_ns()
        answer = await add(s, snaplen=128, service_id=7, payload="474554@0", tls=True, direction="egress")
        order = await ordered(s)
        assert order is not None
        assert (order.selector, order.filter, order.to) == (
            "service=web,tenant=a", "tcp port 80", "app.example:9000",
        )  # fmt: skip
        assert (order.snaplen, order.service_id, order.payload) == (128, 7, "474554@0")
        assert order.direction == answer["direction"] == "egress"
        assert (order.receiver, order.tls, order.store) == ("application", True, False)
        assert before + 3599 * 10**9 < order.expires < time.time_ns() + 3600 * 10**9
        assert len(order.key) == 32
        listed = await s.api.get("/api/v1/taps")
        assert order.key not in listed.text + str(answer)
        assert [tap["name"] for tap in listed.json()] == ["web"]

    with_site(tmp_path, test)


def test_the_same_order_again_gives_it_another_time_only(tmp_path: Path) -> None:
    """The key stays, or streams under way would be refused; another order of the name is refused."""

    async def test(s: Site) -> None:
        await add(s)
        first = await ordered(s)
        await add(s, **{"for": "forever"})
        second = await ordered(s)
        assert first is not None
        assert second == msgspec.structs.replace(first, expires=0)
        other = await s.api.post("/api/v1/taps", json=ORDER | {"filter": "udp"})
        assert (other.status_code, other.json()["error"]) == (400, "there is another tap 'web'")
        assert await ordered(s) == second

    with_site(tmp_path, test)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"selector": "colour=red"}, "'colour=red' is not a selector condition"),
        ({"selector": ""}, "a selector that is empty selects every workload"),
        (
            {"filter": "tcp prot 80"},
            "libpcap refuses the filter: can't parse filter expression: syntax error",
        ),
        ({"filter": "inbound"}, "a filter cannot ask for inbound and outbound here"),
        (
            {"direction": "in"},
            "direction must be ingress (received by the workload), egress (sent by it) or both",
        ),
        ({"payload": "GET"}, "'GET' is not a byte pattern"),
        ({"to": "nowhere"}, "'nowhere' is not HOST:PORT"),
        ({"to": None}, "this server collects no packets"),
        ({"snaplen": 31}, "snaplen 31"),
        ({"for": "1s"}, "a tap for 1 s"),
        ({"for": "soon"}, "'soon' is not a length of time"),
        (
            {"name": "-x"},
            "name must be 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
        ),
        (
            {"name": "a" * 64},
            "name must be 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
        ),
        ({"key": "mine"}, "there is no field 'key'"),
    ],
)
def test_what_no_probe_could_follow_is_refused_before_it_is_stored(
    tmp_path: Path, fields: dict[str, Any], error: str
) -> None:
    async def test(s: Site) -> None:
        response = await s.api.post("/api/v1/taps", json=ORDER | fields)
        assert (response.status_code, response.json()["error"]) == (400, error)
        assert await s.get("taps") == []

    with_site(tmp_path, test)


async def messages(s: Site) -> int:
    """What the bucket holds, markers of deletions included."""
    jetstream = (await s.bus.connection()).jetstream()
    return int((await jetstream.stream_info(f"KV_{TAPS_BUCKET}")).state.messages)


def test_an_order_ends_by_itself_and_leaves_no_trace(tmp_path: Path) -> None:
    """Expired, or taken back before that: once nobody can follow it, the bucket is empty."""

    async def test(s: Site) -> None:
        await add(s, **{"for": "5s"})
        await add(s, name="other", **{"for": "5s"})
        assert (await s.api.delete("/api/v1/taps/other")).json()["name"] == "other"
        assert [tap["name"] for tap in await s.get("taps")] == ["web"]
        assert await messages(s) == 2
        assert (await s.api.delete("/api/v1/taps/other")).status_code == 404
        assert (await s.api.delete("/api/v1/taps/never")).status_code == 404

        async def empty() -> bool:
            return await messages(s) == 0

        await until(empty, 30)
        assert await s.get("taps") == []
        assert (await s.api.get("/api/v1/taps/web")).status_code == 404

    with_site(tmp_path, test)


POINT = TapPoint("web", 1, "veth1", 100, 5, 90, {"buffer_full": 10, "busy": 0}, 3)
GONE = TapPoint("web", 0, "", 20, 1, 20, {})
REFUSED = TapPoint("web", 2, "", 0, 0, 0, {}, 0, "no Ethernet here; write another filter")
STREAM = TapStream("web", True, 7, 3, 95, {"unconfirmed": 5}, 9000, 1)
ANSWER = TapsAnswer("h", [POINT, REFUSED], [STREAM], [GONE], [], ["web"])


def test_what_became_of_an_order_is_put_together(tmp_path: Path) -> None:
    """Sums over points, also such as are gone; places of loss; where nothing is copied, by name."""

    async def test(s: Site) -> None:
        await says(s, lambda: msgspec.json.encode(ANSWER))
        await add(s)
        tap = await s.get("taps/web")
        assert (tap["workloads"], tap["matched"], tap["delivered"]) == (1, 120, 95)
        assert tap["lost"] == {"buffer_full": 10, "unconfirmed": 5}
        assert tap["hosts"] == [{
            "host": "h", "points": 1, "connected": True, "matched": 120, "not_matched": 6, "own": 3,
            "written": 110, "pending": 10, "confirmed": 95, "sent_bytes": 9000, "reconnects": 1,
            "lost": tap["lost"], "problem": "",
            "refused": ["db (label 2): no Ethernet here; write another filter"],
        }]  # fmt: skip
        assert await s.get("ledger/taps") == [{
            "tap": "web", "seen_packets": 120, "not_matched_packets": 6, "delivered_packets": 95,
            "pending_packets": 10, "lost": tap["lost"], "unstored_packets": 0, "missed_packets": 0,
            "balanced": True,
        }]  # fmt: skip
        assert await s.get("ledger/taps", tap="other") == []

    with_site(tmp_path, test)


def test_only_hosts_that_a_tap_is_on_are_asked(tmp_path: Path) -> None:
    """Those of what it selects now, and those that say in their reports that it is there, or was."""

    async def test(s: Site) -> None:
        asked: Counter[str] = Counter()
        probes = {host: FakeProbe(s.probe_bus, host) for host in ("h", "g", "i")}

        async def serve(host: str) -> None:
            async def answer(_: bytes) -> bytes:
                asked[host] += 1
                return msgspec.json.encode(msgspec.structs.replace(ANSWER, host=host))

            await s.probe_bus.serve(taps_subject(host), answer)

        for host, probe in probes.items():
            await serve(host)
            await probe.report(time.time_ns())
        await probes["h"].workloads(workload(1, "web"))
        await probes["g"].workloads(workload(2, "db", service="db", host="g"))
        await s.settled(2)

        async def alive() -> bool:
            return sum(host["alive"] for host in await s.get("hosts")) == 3

        await until(alive)
        await add(s)
        assert [host["host"] for host in (await s.get("taps/web"))["hosts"]] == ["h"]
        assert asked == {"h": 1}
        probes["g"].taps = ["web"]
        await probes["g"].report(time.time_ns())

        async def both() -> bool:
            return [host["host"] for host in (await s.get("taps"))[0]["hosts"]] == ["g", "h"]

        await until(both)
        assert (await s.get("taps/web"))["matched"] == 240
        assert asked["i"] == 0
        assert (await s.get("ledger/taps"))[0]["seen_packets"] == 360
        assert asked["i"] == 1

    with_site(tmp_path, test)


@pytest.mark.parametrize(
    "answer",
    [
        b"{}", b"\xff", b"[" * 5000, msgspec.json.encode(msgspec.structs.replace(ANSWER, host="other")),
        msgspec.json.encode(
            msgspec.structs.replace(ANSWER, points=[msgspec.structs.replace(POINT, matched=-1)])
        ),
        msgspec.json.encode(
            msgspec.structs.replace(ANSWER, points=[msgspec.structs.replace(REFUSED, label=1 << 70)])
        ),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_counts_as_none(tmp_path: Path, answer: bytes) -> None:
    async def test(s: Site) -> None:
        await says(s, lambda: answer)
        await add(s)
        (host,) = (await s.get("taps/web"))["hosts"]
        assert (host["host"], host["problem"]) == ("h", "its probe does not answer")
        assert [entry["seen_packets"] for entry in await s.get("ledger/taps")] == [0]

    with_site(tmp_path, test)


def test_a_ledger_that_is_not_balanced_says_so(tmp_path: Path) -> None:
    """One packet too few in any place, and it shows; a tap that nobody orders any more is there too."""
    broken = [
        msgspec.structs.replace(ANSWER, points=[msgspec.structs.replace(POINT, matched=101)]),
        msgspec.structs.replace(ANSWER, streams=[msgspec.structs.replace(STREAM, confirmed=94)]),
    ]

    async def test(s: Site) -> None:
        await says(s, lambda: msgspec.json.encode(broken[-1]))
        while broken:
            assert [entry["balanced"] for entry in await s.get("ledger/taps")] == [False]
            broken.pop()

    with_site(tmp_path, test)


def test_packets_are_read_where_they_are_collected(tmp_path: Path) -> None:
    """This server has no collector: it says where they go."""

    async def test(s: Site) -> None:
        await add(s)
        for name, status, error in (
            ("web", 400, "this server does not collect the tap 'web'"),
            ("other", 404, "there is no tap 'other'"),
        ):
            response = await s.api.get(f"/api/v1/taps/{name}/stream")
            assert (response.status_code, response.json()["error"]) == (status, error)

    with_site(tmp_path, test)
