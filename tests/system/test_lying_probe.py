"""A probe that answers what cannot be: its answer is refused by name, those of the others are shown."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import msgspec

from eastwest.bus.messages import ENFORCE_BUCKET, SUSPECT_BUCKET, enforce_subject, suspect_subject
from eastwest.labels.suspect import parse
from eastwest.manager.orders import Orders
from tests.system.bus_server import until
from tests.system.fake_probe import START, FakeProbe
from tests.system.server_site import Site, site

ENTRY: dict[str, Any] = {
    "what": "10.0.0.0/8", "why": "feed", "sources": ["/etc/feed"], "added": START, "expires": 0,
    "packets": 7, "bytes": 700, "last_hit": START,
}  # fmt: skip
SOURCE: dict[str, Any] = {"label": 1, "port": "veth0", "hook": "port", "refused": ""}

TIMES = (-1, 1 << 63, 1 << 64, 10**300, 1.5, "now", None)
TEXTS = ("x" * 5000, "\x1b[2J", "10.0.0.0/99", "10.1.2.3/8", "10.0.0.2", 7, None, ["10.0.0.0/8"])
ENTRIES = (
    [ENTRY | {field: value} for field in ("added", "expires", "packets", "last_hit") for value in TIMES]
    + [ENTRY | {"what": text} for text in TEXTS]
    + [ENTRY | {"why": "x" * 256}, ENTRY | {"sources": ["x"] * 300}, ENTRY | {"sources": ["x" * 5000]}, {}]
)
SUSPECTS = (
    *({"host": "liar", "entries": [entry], "left_out": 0} for entry in ENTRIES),
    {"host": "liar", "entries": [ENTRY, ENTRY], "left_out": 0},
    {"host": "liar", "entries": [ENTRY] * 10_001, "left_out": 0},
    {"host": "liar", "entries": [], "left_out": -1},
    {"host": "honest", "entries": [], "left_out": 0},
)
SOURCES = (
    *(SOURCE | {"label": label} for label in (-1, 1 << 32, 1 << 64, "1")),
    SOURCE | {"port": "x" * 300}, SOURCE | {"hook": "xdp"}, SOURCE | {"refused": "x" * 5000}, {},
)  # fmt: skip
ENFORCED = (
    *({"host": "liar", "sources": [source], "selectors": []} for source in SOURCES),
    {"host": "liar", "sources": [SOURCE] * 100_001, "selectors": []},
    {"host": "liar", "sources": [], "selectors": ["x" * 5000]},
    {"host": "honest", "sources": [], "selectors": []},
)
NO_DOCUMENTS = (b"", b"{", b"\xff", b"null", b"[" * 100_000, b"9" * 9000, b'{"host":"\\ud800"}')


async def both(s: Site, lie: list[bytes]) -> None:
    """Two probes that are alive: one honest, one that answers `lie[0]` to every question."""
    good = {
        suspect_subject: {"host": "honest", "entries": [ENTRY], "left_out": 0},
        enforce_subject: {"host": "honest", "sources": [SOURCE], "selectors": []},
    }

    async def lies(_: bytes) -> bytes:
        return lie[0]

    for subject, document in good.items():
        truth = msgspec.json.encode(document)

        async def honest(_: bytes, truth: bytes = truth) -> bytes:
            return truth

        await s.probe_bus.serve(subject("honest"), honest)
        await s.probe_bus.serve(subject("liar"), lies)
    await until(lambda: alive(s))


async def alive(s: Site) -> bool:
    for host in ("honest", "liar"):
        await FakeProbe(s.probe_bus, host).report(time.time_ns())
    return len(await s.get("hosts")) == 2


def test_an_answer_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    """Times, texts and lists beyond all bounds, another's name, no document at all: the page comes, the
    honest probe is on it, the other is named with the reason; its next good answer is taken."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            lie = [b""]
            await both(s, lie)
            suspects = [msgspec.json.encode(document) for document in SUSPECTS]
            for lie[0] in (*suspects, *NO_DOCUMENTS):
                await alive(s)
                page = await s.get("suspect")
                assert [(e["what"], e["packets"], e["hosts"]) for e in page["entries"]] == [
                    ("10.0.0.0/8", 7, ["honest"])
                ], lie[0][:200]
                assert page["unanswered"] == ["liar"]
                assert any(
                    "host liar: its probe's answer is" in p for p in (await s.get("health"))["problems"]
                )
            lie[0] = msgspec.json.encode({"host": "liar", "entries": [ENTRY], "left_out": 0})
            page = await s.get("suspect")
            assert [(e["packets"], e["hosts"]) for e in page["entries"]] == [(14, ["honest", "liar"])]
            assert not any("host liar" in p for p in (await s.get("health"))["problems"])
            for lie[0] in (*(msgspec.json.encode(document) for document in ENFORCED), *NO_DOCUMENTS):
                await alive(s)
                page = await s.get("enforcement")
                assert [e["host"] for e in page["sources"]] == ["honest"], lie[0][:200]
                assert page["unanswered"] == ["liar"]

    asyncio.run(scenario())


def test_answers_with_noise_in_them(tmp_path: Path) -> None:
    """Good answers with bytes changed at random: whatever they say now, the page comes."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            chosen, lie = random.Random(1), [b""]
            await both(s, lie)
            good = {
                "suspect": msgspec.json.encode({"host": "liar", "entries": [ENTRY], "left_out": 1}),
                "enforcement": msgspec.json.encode(
                    {"host": "liar", "sources": [SOURCE], "selectors": ["a=b"]}
                ),
            }
            for number in range(300):
                path = chosen.choice(list(good))
                noisy = bytearray(good[path])
                for _ in range(chosen.randrange(1, 4)):
                    noisy[chosen.randrange(len(noisy))] = chosen.choice(b'0123456789-e.,:"{}[]\\u\xff\0x')
                lie[0] = bytes(noisy)
                if not number % 20:
                    await alive(s)
                page = await s.get(path)
                assert "honest" in str(page["entries" if path == "suspect" else "sources"])

    asyncio.run(scenario())


def test_orders_on_the_bus_that_cannot_be(tmp_path: Path) -> None:
    """Times that never were, reasons without end, what has another's name: only the good one is listed."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            good = {"why": "", "added": START, "expires": 0}
            bad: list[dict[str, Any]] = [good | {"expires": value} for value in TIMES]
            bad += [good | {"added": -1}, good | {"why": "x" * 256}]
            async with Orders(s.bus) as orders:
                bucket = s.bus.bucket(SUSPECT_BUCKET)
                for number, values in enumerate(bad):
                    what = f"10.{number}.0.0/16"
                    await bucket.put(parse(what).name, msgspec.json.encode(values | {"what": what}))
                for number, what in enumerate(("10.0.0.0/99", "11.0.0.0/8", "x" * 201)):
                    await bucket.put(f"s{number}", msgspec.json.encode(good | {"what": what}))
                for number, added in enumerate((-1, 1 << 63)):
                    order = {"selector": "name=a", "added": added}
                    await s.bus.bucket(ENFORCE_BUCKET).put(f"e{number}", msgspec.json.encode(order))
                for bucket, last in (
                    (SUSPECT_BUCKET, {"what": "192.0.2.0/24", "why": "", "added": 1, "expires": 0}),
                    (ENFORCE_BUCKET, {"selector": "name=b", "added": 1}),
                ):
                    key = parse("192.0.2.0/24").name if bucket == SUSPECT_BUCKET else "good"
                    await s.bus.bucket(bucket).put(key, msgspec.json.encode(last))

                async def known() -> bool:
                    return bool(orders.suspects) and bool(orders.enforced)

                await until(known)
                assert [order.what for order in orders.suspects] == ["192.0.2.0/24"]
                assert [order.selector for order in orders.enforced] == ["name=b"]

    asyncio.run(scenario())
