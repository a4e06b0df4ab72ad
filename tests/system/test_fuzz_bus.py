"""Hostile messages and garbage in every bucket of a real nats-server: refused, counted, named; nothing else
is lost, and memory does not grow."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest

from eastwest.bus.client import Bus
from eastwest.bus.messages import (
    EVIDENCE,
    FACTS_BUCKET,
    FLOWS,
    HOSTS_BUCKET,
    LABELS_BUCKET,
    MAX_MESSAGE_BYTES,
    SILENCES_BUCKET,
    TOTALS,
    WATCHES_BUCKET,
    WORKLOADS,
)
from tests.conftest import Workload
from tests.system.bus_server import RunningServer, until
from tests.system.fake_probe import FakeProbe, flow_rows, total_rows, workload
from tests.system.server_site import Site, site
from tests.system.test_probe import harness, with_server

WARM_UP, HOSTILE = 4_000, 20_000
GROWTH_BYTES = 64 << 20
"""What the process, publishers of this test included, may grow by after the warm-up: 20,000 messages of up to
20 kB each would be several times that."""

DEEP = b'[{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}]"
HEADERS = {"Ew-Host": "h", "Ew-Boot": "1", "Ew-Sequence": "999999"}
Hostile = tuple[str, bytes, dict[str, str], str]
"""Subject, payload, headers, and the reason for which it is refused."""


def _impossible(**fields: Any) -> bytes:
    return msgspec.json.encode([msgspec.structs.replace(workload(1, "x"), **fields)])


def _hostile(chosen: random.Random) -> Iterator[Hostile]:
    """Every way in which a message can be wrong, for ever."""
    rows, totals = flow_rows(list(range(100)), [1] * 100), total_rows({1: 1})
    wrong_rows, wrong_totals = rows.copy(), totals.copy()
    wrong_rows["packets"][50] = 1 << 60
    wrong_totals["suspect_egress_packets"] = 2
    documents = [
        b"", b"{", b"\xff", b"[1]", b'[{"label":1}]', b"null", b"[" * 5000, DEEP[:2000], b'"\\ud800"',
        b"[" + b"9" * 6000 + b"]",
    ]  # fmt: skip
    values = [
        _impossible(last_seen=-1), _impossible(label=1 << 40), _impossible(name="x" * 5000),
        _impossible(past_addresses=["1"] * 5000), _impossible(service_id=-1), _impossible(host=""),
    ]  # fmt: skip
    kinds = (FLOWS, TOTALS, WORKLOADS, EVIDENCE)
    while True:
        yield f"{WORKLOADS}.h", chosen.choice(documents), {}, "json"
        yield f"{WORKLOADS}.h", chosen.choice(values), {}, "values"
        yield f"{EVIDENCE}.h", chosen.choice(documents), {}, "json"
        yield f"{FLOWS}.h", chosen.randbytes(rows.itemsize * chosen.randrange(99) + 1), {}, "size"
        yield f"{TOTALS}.h", totals.tobytes()[:-1], {}, "size"
        yield f"{FLOWS}.h", wrong_rows.tobytes(), {}, "values"
        yield f"{TOTALS}.h", wrong_totals.tobytes(), {}, "values"
        wrong = {chosen.choice(list(HEADERS)): chosen.choice(("", "-1" * 70, "x y", "*", ">"))}
        yield f"{chosen.choice(kinds)}.h", rows.tobytes(), wrong, "headers"
        yield f"{chosen.choice(kinds)}.other", rows.tobytes(), {}, "subject"
        yield f"{chosen.choice(kinds)}.h.{chosen.randrange(99)}", b"", {}, "subject"


async def _publish(s: Site, hostile: Iterator[Hostile], count: int) -> Counter[str]:
    """So many, acknowledged by the stream; the reasons for which they have to be refused."""
    stream = (await s.probe_bus.connection()).jetstream()
    reasons: Counter[str] = Counter()
    while (left := count - reasons.total()) > 0:
        part = [next(hostile) for _ in range(min(left, 250))]
        await asyncio.gather(
            *(stream.publish(subject, body, headers=HEADERS | told) for subject, body, told, _ in part)
        )
        reasons.update(reason for *_, reason in part)
    return reasons


async def _dealt_with(s: Site, messages: int) -> None:
    async def all_of_them() -> bool:
        return s.collector.status.messages >= messages

    await until(all_of_them, 120)
    await s.settled(messages)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_hostile_messages_cost_nothing_but_themselves(tmp_path: Path) -> None:
    """20,000 of every kind: each counted by its reason, honest ones between them stored once, whatever their
    order and however often they come; the ledger balances and memory has levelled off."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            hostile = _hostile(random.Random(1))
            probe = FakeProbe(s.probe_bus)
            await probe.flows([1, 2], [10, 20])
            expected = await _publish(s, hostile, WARM_UP)
            await _dealt_with(s, WARM_UP + 1)
            before = _resident()
            for _ in range(10):
                expected += await _publish(s, hostile, HOSTILE // 10)
                await probe.flows([1, 2], [10, 20])
            await _dealt_with(s, WARM_UP + HOSTILE + 11)
            grown = _resident() - before
            assert s.collector.status.malformed == dict(expected)
            assert grown < GROWTH_BYTES, f"{grown >> 20} MiB more"
            await _disorder(s, probe)
            await probe.totals()
            await _dealt_with(s, WARM_UP + HOSTILE + 11 + 40 + 200 + 1)
            status = s.collector.status
            assert (status.stored_messages, status.repeats) == (11 + 40 + 1, 200)
            assert status.malformed == dict(expected)
            ledger = await s.ledger()
            assert ledger[1] == (150, 150, 0, {}, True) and ledger[2] == (220, 220, 0, {}, True)

    asyncio.run(scenario())


async def _disorder(s: Site, probe: FakeProbe) -> None:
    """Forty messages of one packet each out of their order, then each five times more."""
    stream = (await s.probe_bus.connection()).jetstream()
    rows = flow_rows([1], [1]).tobytes()
    numbers = [str(probe.sequence + n) for n in range(1, 41)]
    probe.sequence += 40
    probe.seen[1] += 40
    chosen = random.Random(2)
    for _ in range(6):
        chosen.shuffle(numbers)
        for number in numbers:
            await stream.publish(f"{FLOWS}.h", rows, headers=HEADERS | {"Ew-Sequence": number})


def test_message_that_is_too_large_or_deep_harms_nobody(tmp_path: Path) -> None:
    """The largest that the bus takes is refused by the collector, a larger one by nats-server or its client;
    one that nests a hundred thousand levels ends nothing."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.flows([1], [5])
            client = await s.probe_bus.connection()
            body = bytes(MAX_MESSAGE_BYTES - 4096)
            for subject, payload in ((FLOWS, body), (TOTALS, body), (WORKLOADS, body), (WORKLOADS, DEEP)):
                await client.jetstream().publish(f"{subject}.h", payload, headers=HEADERS)
            with pytest.raises(nats.errors.MaxPayloadError):
                await client.publish(f"{FLOWS}.h", bytes(MAX_MESSAGE_BYTES + 1))
            assert client._transport is not None
            client._transport.write(b"PUB eastwest.flows.h 99999999\r\n" + bytes(1000))
            await client._transport.drain()

            async def sent() -> bool:
                try:
                    await probe.flows([1], [7])
                except Exception as error:  # noqa: BLE001 - the connection that was cut comes back
                    assert "cannot publish" in str(error) or "no connection" in str(error)
                    probe.seen, probe.sequence = {1: 5}, 1
                    return False
                return True

            await until(sent, 60)
            await probe.totals()
            await s.settled(7)
            malformed = s.collector.status.malformed
            assert malformed["json"] == 2 and sum(malformed.values()) == 4
            assert (await s.ledger())[1] == (12, 12, 0, {}, True)

    asyncio.run(scenario())


GARBAGE = (
    b"", b"\x00", b"{", b"\xff", b"[]", b"null", b"1", b'{"x":1}', DEEP, b'{"x":' + DEEP + b"}", b"9" * 9000,
    b'"' + b"x" * 100_000 + b'"',
)  # fmt: skip


def _report(**fields: Any) -> bytes:
    """A host's report with impossible values."""
    good: dict[str, Any] = {
        "host": "h", "boot": 1, "cut": 1, "time": time.time_ns(), "started_at": 1, "version": "0",
        "interval_seconds": 1.0, "hooks": [], "interfaces": [], "malformed": {}, "problems": [],
        "cost": {"cpu_percent": 1.0, "memory_bytes": 1, "programs": [], "sampled_at": 0},
    }  # fmt: skip
    return msgspec.json.encode(good | fields)


REPORTS = (
    _report(host="other"), _report(time=(1 << 64) - 1), _report(started_at=-1), _report(version="x" * 9000),
    _report(problems=["x"] * 9000), _report(interval_seconds=1e300),
    _report(malformed={"x": 1}).replace(b'{"x":1}', b'{"x":' + b"9" * 300 + b"}"),
)  # fmt: skip


def test_garbage_in_every_bucket(tmp_path: Path) -> None:
    """Reports, watches, silences and facts: what was good before stays, what is wrong is named, API and
    metrics go on, and a good value mends it."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"))
            await s.settled(1)
            await probe.report(time.time_ns())

            async def reported(problem: bool) -> bool:
                named = [p for p in (await s.get("health"))["problems"] if "report cannot be read" in p]
                return len(await s.get("hosts")) == 1 and bool(named) is problem

            await until(lambda: reported(False))
            for garbage in (*GARBAGE, *REPORTS):
                if garbage:
                    await s.probe_bus.bucket(HOSTS_BUCKET).put("h", garbage)
                    await until(lambda: reported(True))
                    assert (await s.api.get("/metrics")).status_code == 200
                await probe.report(time.time_ns())
                await until(lambda: reported(False))
            for bucket in (WATCHES_BUCKET, SILENCES_BUCKET):
                for number, garbage in enumerate(GARBAGE):
                    await s.bus.bucket(bucket).put(f"k{number}", garbage)
            for garbage in GARBAGE:
                await s.bus.bucket(FACTS_BUCKET).put("1", garbage)
                answer = await s.api.post("/api/v1/labels/1", json={"tenant": "red"})
                assert answer.status_code == 200 and answer.json()["facts"]["tenant"] == "red"
            for path in ("watches", "silences", "alerts", "labels", "hosts", "health"):
                await s.get(path)

    asyncio.run(scenario())


def test_probe_goes_on_with_garbage_in_its_buckets(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """A counter of labels that is none leases nothing, and that is said until it is mended; bad facts are
    refused one by one, and those that can are taken."""

    async def test(server: RunningServer, state: Path) -> None:
        with Workload(netns) as one:
            async with (
                Bus(server.files.bus_config("server")) as bus,
                Bus(server.files.bus_config("probe")) as own,
            ):
                for garbage in (b"x", b"-5", b"0", b"9" * 5000):
                    await own.bucket(LABELS_BUCKET).put("next", garbage)
                async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:

                    async def said(text: str) -> bool:
                        found = await bus.bucket(HOSTS_BUCKET).get("h")
                        return found is not None and text.encode() in found[0]

                    await until(lambda: said("is no number"), 30)
                    await own.bucket(LABELS_BUCKET).put("next", b"77")
                    label = await h.knows(one.name)
                    assert label == 77
                    impossible = (b'{"service_id":-1}', b'{"tenant":"' + b"x" * 300 + b'"}', b'{"class":"x"}')
                    for number, garbage in enumerate((*GARBAGE, *impossible)):
                        await bus.bucket(FACTS_BUCKET).put(f"k{number}" if number % 2 else "77", garbage)
                    await until(lambda: said("are refused"), 30)
                    await bus.bucket(FACTS_BUCKET).put("77", b'{"tenant":"red","service_id":4294967295}')

                    async def taken() -> bool:
                        (found,) = [w for w in h.probe.workloads() if w.label == label]
                        return (found.tenant, found.service_id) == ("red", 4294967295)

                    await until(taken, 30)
                    one.send(9)
                    await h.becomes({label: 9}, 30)

    with_server(tmp_path, test)
