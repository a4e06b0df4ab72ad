"""What users and files declare suspect, on a real bus: in effect once listed, exact by label and entry."""

import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from eastwest.bus.client import Bus
from eastwest.bus.messages import (
    ENFORCE_BUCKET,
    SUSPECT_BUCKET,
    Evidence,
    SuspectAnswer,
    SuspectEntry,
    SuspectOrder,
    suspect_subject,
)
from eastwest.errors import BusError, NotFoundError, RefusedError
from eastwest.labels.suspect import parse, prefix_key
from eastwest.manager.orders import Orders
from eastwest.meter.rows import TOTAL_ROW
from eastwest.probe.config import SuspectConfig
from tests.conftest import Workload, run
from tests.system.bus_server import RunningServer, until
from tests.system.stream import messages
from tests.system.test_disks import full, small_disk
from tests.system.test_probe import Harness, harness, with_server

Test = Callable[[RunningServer, Path, Orders, Bus], Awaitable[None]]


def with_orders(tmp_path: Path, test: Test) -> None:
    """Run a test with a bus, and the orders as the manager gives them."""

    async def main(server: RunningServer, state: Path) -> None:
        async with Bus(server.files.bus_config("server")) as bus, Orders(bus) as orders:
            await test(server, state, orders, bus)

    with_server(tmp_path, main)


async def listed(bus: Bus) -> dict[str, SuspectEntry]:
    """What the probe says is in effect."""
    reply = await bus.request(suspect_subject("h"), b"", 10)
    return {entry.what: entry for entry in msgspec.json.decode(reply, type=SuspectAnswer).entries}


async def in_effect(bus: Bus, *what: str) -> None:
    """Wait until exactly these are."""

    async def same() -> bool:
        try:
            return sorted(await listed(bus)) == sorted(what)
        except BusError:
            return False  # it does not listen yet

    await until(same, 30)


async def suspect_packets(h: Harness, label: int) -> int:
    last = {int(row["serial"]): row for row in await h.rows("totals", TOTAL_ROW)}
    mine = [row for row in last.values() if row["label"] == label]
    return sum(int(row["suspect_egress_packets"] + row["suspect_ingress_packets"]) for row in mine)


def test_what_a_user_declares_is_counted_apart_until_it_is_taken_back(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """A prefix for one port number's worth of time, a flow for good: packets of each, to the packet."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                workload.send(10)
                await orders.declare("10.1.0.77/24", "a feed", None)
                await in_effect(bus, "10.1.0.0/24")
                workload.send(20)
                await orders.take_back("10.1.0.0/24", ["h"])
                await in_effect(bus)
                workload.send(40)
                await h.becomes({label: 70})
                assert await suspect_packets(h, label) == 20

    with_orders(tmp_path, test)


def test_an_entry_ends_when_its_time_is_over(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """By the probe's clock, and soon from the bucket as well; hits are those of its time."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                await orders.declare("10.1.0.2", "", 3)
                await in_effect(bus, "10.1.0.2/32")
                workload.send(7)
                assert (await listed(bus))["10.1.0.2/32"].packets == 7
                await in_effect(bus)
                workload.send(5)
                await h.becomes({label: 12})
                assert await suspect_packets(h, label) == 7
                await until(lambda: _is_empty(bus, "10.1.0.2/32"), 30)

    with_orders(tmp_path, test)


def test_an_entry_that_is_renewed_as_it_expires_stays(tmp_path: Path) -> None:
    """Another server's user renews it: the manager that knows only the old one deletes nothing."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        old = SuspectOrder("10.0.0.0/8", "", 1, 2)
        name = parse(old.what).name
        renewed = msgspec.json.encode(SuspectOrder(old.what, "renewed", 3, 0))
        bucket = bus.bucket(SUSPECT_BUCKET)
        await bucket.put(name, renewed)
        await until(lambda: _says(bool(orders.suspects)), 30)
        await orders._drop(name, old)
        found = await bucket.get(name)
        assert found is not None and found[0] == renewed
        assert [order.why for order in orders.suspects] == ["renewed"]

    with_orders(tmp_path, test)


def test_what_expires_leaves_no_trace_in_the_bucket(tmp_path: Path) -> None:
    """Many expired entries cannot fill it: there is no marker for each; a deleted one has one."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        bucket = bus.bucket(SUSPECT_BUCKET)
        for what in ("10.0.0.0/8", "192.0.2.0/24"):
            old = SuspectOrder(what, "", 1, 2)
            await bucket.put(parse(what).name, msgspec.json.encode(old))
            await orders._drop(parse(what).name, old)
            assert await _is_empty(bus, what)
        jetstream = (await bus.connection()).jetstream()
        assert (await jetstream.stream_info(f"KV_{SUSPECT_BUCKET}")).state.messages == 0
        await bucket.put("x", b"{}")
        await bucket.delete("x")
        assert (await jetstream.stream_info(f"KV_{SUSPECT_BUCKET}")).state.messages == 1

    with_orders(tmp_path, test)


def test_markers_of_what_was_taken_back_are_few_and_go(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """None of what nobody knows; those that are old enough are purged, and what is there stays."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async def kept(bucket: str) -> int:
            jetstream = (await bus.connection()).jetstream()
            return (await jetstream.stream_info(f"KV_{bucket}")).state.messages

        suspects, enforced = bus.bucket(SUSPECT_BUCKET), bus.bucket(ENFORCE_BUCKET)
        async with harness(server, state, netns=netns, cgroup_root=cgroup):
            await orders.declare("10.0.0.0/8", "", None)
            await in_effect(bus, "10.0.0.0/8")
            for number in range(20):
                with pytest.raises(NotFoundError, match=r"^'[^']*' is not declared suspect; see"):
                    await orders.take_back(f"10.0.0.{number}", ["h"])
                with pytest.raises(NotFoundError, match=r"^'[^']*' is not ordered; see"):
                    await orders.release(f"name=n{number}", ["h"])
            assert (await kept(SUSPECT_BUCKET), await kept(ENFORCE_BUCKET)) == (1, 0)
            with pytest.raises(NotFoundError, match="are told to stop"):
                await orders.release("name=a", ["one that does not answer"])
            await orders.declare("10.0.0.1", "", None)
            await orders.take_back("10.0.0.1", ["h"])
            assert (await kept(SUSPECT_BUCKET), await kept(ENFORCE_BUCKET)) == (2, 1)
            await suspects.purge_markers(3600)
            assert await kept(SUSPECT_BUCKET) == 2
            await suspects.purge_markers(0)
            await enforced.purge_markers(0)
            assert (await kept(SUSPECT_BUCKET), await kept(ENFORCE_BUCKET)) == (1, 0)
            await in_effect(bus, "10.0.0.0/8")

    with_orders(tmp_path, test)


def test_probe_forgets_what_expired_by_itself(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """In memory and on disk, with nobody who tells it: the next probe does not know it either."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            gone = SuspectOrder("10.9.0.0/16", "", 1, time.time_ns() + 5 * 10**9)
            await bus.bucket(SUSPECT_BUCKET).put(parse(gone.what).name, msgspec.json.encode(gone))
            await orders.declare("10.1.0.0/16", "", None)
            known = h.probe._suspects._declared
            await until(lambda: _says(known.keys() == {parse("10.1.0.0/16").name}), 30)
            assert h.probe._journal.orders(SUSPECT_BUCKET).keys() == known.keys()

    with_orders(tmp_path, test)


async def _is_empty(bus: Bus, what: str) -> bool:
    return await bus.bucket(SUSPECT_BUCKET).get(parse(what).name) is None


def test_hits_are_each_entrys_own(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Prefix and flow, with packets, bytes and time; an entry that nothing met has none."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as workload:
                await h.knows(workload.name)
                for what in ("10.1.0.0/16", "192.0.2.0/24", "fd00::/8"):
                    await orders.declare(what, f"why {what}", None)
                await in_effect(bus, "10.1.0.0/16", "192.0.2.0/24", "fd00::/8")
                before = time.time_ns()
                workload.send(30)
                hits = await listed(bus)
                one = hits["10.1.0.0/16"]
                assert (one.packets, one.bytes, one.why, one.sources) == (
                    30,
                    3000,
                    "why 10.1.0.0/16",
                    ["api"],
                )
                assert before - 10**8 < one.last_hit < time.time_ns() + 10**8
                assert (hits["192.0.2.0/24"].packets, hits["fd00::/8"].last_hit) == (0, 0)

    with_orders(tmp_path, test)


def test_a_file_of_a_hundred_thousand_is_read_again_when_it_changes(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """Bad lines are named and left out; a file that goes stays in force, for the next probe as well."""
    feed = tmp_path / "feed.txt"
    lines = [f"11.{n >> 11 & 255}.{n >> 3 & 255}.{(n & 7) << 5}/27" for n in range(100_000)]
    feed.write_text("\n".join([*lines, "nonsense", "10.1.0.2 # the one", "1.2.3.4/33", ""]))
    suspect = SuspectConfig(files=(feed, tmp_path / "absent.txt"))

    def loaded(h: Harness) -> int:
        return len(h.probe._suspects._maps.loaded[0])

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup, suspect=suspect) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                assert loaded(h) == 100_001
                problems = "; ".join(h.probe._suspects.problems)
                assert "line 100001 is left out: 'nonsense' is no IP address, and 1 more lines" in problems
                assert "absent.txt cannot be read: No such file or directory" in problems
                workload.send(9)
                entry = (await listed(bus))["10.1.0.2/32"]
                assert (entry.packets, entry.sources) == (9, [str(feed)])
                fresh = tmp_path / "fresh"
                fresh.write_text("\n".join(lines[50_000:]))
                fresh.replace(feed)
                await until(lambda: _says(loaded(h) == 50_000), 30)
                await in_effect(bus)
                workload.send(4)
                feed.unlink()
                await until(lambda: _says("put the file back" in str(h.probe._suspects.problems[0])), 30)
                assert loaded(h) == 50_000
                await h.becomes({label: 13})
                assert await suspect_packets(h, label) == 9
        async with harness(server, state, netns=netns, cgroup_root=cgroup, suspect=suspect) as h:
            assert loaded(h) == 50_000

    with_orders(tmp_path, test)


async def _says(value: bool) -> bool:
    return value


def test_a_probe_that_starts_without_the_bus_takes_nothing_back(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """What was declared stays; what was taken back meanwhile goes when the bus is there again."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        with Workload(netns) as workload:
            async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
                label = await h.knows(workload.name)
                await orders.declare("10.1.0.2", "", None)
                await orders.declare("10.9.0.0/16", "", None)
                await in_effect(bus, "10.1.0.2/32", "10.9.0.0/16")
                workload.send(3)
            await orders.take_back("10.9.0.0/16", ["h"])
            workload.send(4)
            server.kill()
            async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
                workload.send(5)
                assert len(h.probe._suspects._maps.loaded[0]) == 2
                server.start()
                await in_effect(bus, "10.1.0.2/32")
                assert (await listed(bus))["10.1.0.2/32"].packets == 12
                await h.becomes({label: 12})
                assert await suspect_packets(h, label) == 12

    with_orders(tmp_path, test)


def test_what_the_bus_has_lost_can_be_taken_back(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """The bus comes back with nothing: probes go on, say what they follow, and stop when they are told to."""

    async def followed(orders: Orders) -> list[str] | None:
        (answer,) = await orders.ask_enforced(["h"])
        return answer.selectors if answer else None

    async def follows(orders: Orders, *selectors: str) -> None:
        async def same() -> bool:
            return await followed(orders) == list(selectors)

        await until(same, 60)

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup):
            await orders.declare("10.1.0.2", "", None)
            await orders.enforce("name=web")
            await in_effect(bus, "10.1.0.2/32")
            await follows(orders, "name=web")
            server.kill()
            shutil.rmtree(tmp_path / "nats" / "jetstream")
            server.start()
            async with Bus(server.files.bus_config("server")) as another, Orders(another) as fresh:
                await follows(fresh, "name=web")
                with pytest.raises(NotFoundError, match="probes that follow it all the same are told"):
                    await fresh.take_back("10.1.0.2", ["h"])
                with pytest.raises(NotFoundError, match="probes that follow it all the same are told"):
                    await fresh.release("name=web", ["h"])
                await follows(fresh)
                await in_effect(bus)

    with_orders(tmp_path, test)


@pytest.mark.parametrize("room", [True, False])
def test_a_source_that_becomes_anothers_is_not_enforced_any_more(
    netns: Path, cgroup: Path, tmp_path: Path, room: bool
) -> None:
    """A port's other end moves out of an enforced workload: also where no account is left for the new one."""

    async def enforced(orders: Orders) -> list[str]:
        (answer,) = await orders.ask_enforced(["h"])
        return [source.port for source in answer.sources] if answer else ["?"]

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as old, Workload(netns) as new:
                await h.knows(new.name)
                await h.knows(old.name)
                meter = h.probe._meter
                await orders.enforce(f"name={old.name}")
                await until(lambda: _says(meter.port_sources()[old.ifindex].enforced), 30)
                assert await enforced(orders) == [old.port]
                while not room and meter.open_account():
                    pass
                run("ip", "-n", old.name, "link", "set", "eth0", "name", "eth1")
                run("ip", "-n", old.name, "link", "set", "eth1", "netns", new.name)
                await until(lambda: _says(not meter.port_sources()[old.ifindex].enforced), 30)
                assert await enforced(orders) == []
                assert bool(h.probe._booking.problem) is not room

    with_orders(tmp_path, test)


def test_what_finds_no_room_is_said(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """64 places: what users declare comes first, then the first file, then the second from its first line on;
    the rest is counted in a problem. So it is each time that a file is read."""
    feeds = [tmp_path / "z.txt", tmp_path / "a.txt"]
    lines = [[f"198.51.100.{200 - n}" for n in range(30)], [f"192.0.2.{200 - n}" for n in range(100)]]
    for feed, prefixes in zip(feeds, lines, strict=True):
        feed.write_text("\n".join(prefixes))
    settings = {"netns": netns, "cgroup_root": cgroup, "suspect_entries": 64}

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, suspect=SuspectConfig(files=tuple(feeds)), **settings) as h:
            suspects = h.probe._suspects
            await orders.declare("10.0.0.0/8", "", None)
            await in_effect(bus, "10.0.0.0/8")
            assert suspects._maps.loaded[0] == {
                prefix_key(p) for p in ["10.0.0.0/8", *lines[0], *lines[1][:33]]
            }
            (problem,) = suspects.problems
            assert problem.startswith("67 suspect entries find no room; set a larger [probe] suspect_entries")
            feeds[1].write_text("\n".join(lines[1][::-1]))
            last = {prefix_key(p) for p in ["10.0.0.0/8", *lines[0], *lines[1][-33:]]}
            await until(lambda: _says(suspects._maps.loaded[0] == last), 30)

    with_orders(tmp_path, test)


def test_what_is_not_in_effect_yet_is_said(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """The disk is full, so no cut is made: what was there is in effect, what is new is pending till then."""

    async def pending(bus: Bus) -> dict[str, bool]:
        return {what: entry.pending for what, entry in (await listed(bus)).items()}

    async def becomes(bus: Bus, expected: dict[str, bool]) -> None:
        async def same() -> bool:
            return await pending(bus) == expected

        await until(same, 60)

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                await orders.declare("10.9.0.0/16", "", None)
                await in_effect(bus, "10.9.0.0/16")
                with full(state):
                    workload.send(3)
                    await until(lambda: _says(bool(h.probe._problems.get("journal"))), 30)
                    await orders.declare("10.1.0.2", "", None)
                    await becomes(bus, {"10.9.0.0/16": False, "10.1.0.2/32": True})
                await becomes(bus, {"10.9.0.0/16": False, "10.1.0.2/32": False})
                workload.send(4)
                await h.becomes({label: 7})
                assert await suspect_packets(h, label) == 4

    with small_disk(tmp_path / "state", tmp_path / "spare"):
        with_orders(tmp_path, test)


def test_documents_that_lie_are_refused_one_by_one(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """What is no order is a problem until something else is in its place; those beside it are followed."""

    async def problems(h: Harness, *expected: str) -> None:
        async def same() -> bool:
            found = [*h.probe._suspects.problems, *h.probe._enforcement.problems]
            return [p.partition(" is refused")[0] for p in found] == list(expected)

        await until(same, 30)

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            suspects, enforced = bus.bucket(SUSPECT_BUCKET), bus.bucket(ENFORCE_BUCKET)
            await suspects.put("a", b"\xff{")
            await suspects.put("b", b'{"what": "10.0.0.0/99", "why": "", "added": 1, "expires": 0}')
            await enforced.put("c", b'{"selector": "x", "added": 1}')
            await enforced.put("d", b'{"selector": "name=a", "added": -1}')
            four = (
                "a suspect entry 'a'",
                "a suspect entry 'b'",
                "an order to enforce 'c'",
                "an order to enforce 'd'",
            )
            await problems(h, *four)
            await orders.declare("10.0.0.0/8", "", None)
            await orders.enforce("name=a")
            await in_effect(bus, "10.0.0.0/8")
            await until(lambda: _says(len(h.probe._enforcement._orders) == 1), 30)
            await problems(h, *four)
            await suspects.delete("a")
            await enforced.put("c", b'{"selector": "name=b", "added": 1}')
            await problems(h, four[1], four[3])
            for number in range(10):
                await enforced.put(f"x{number}", b"{")
            await problems(
                h, four[1], four[3], *(f"an order to enforce 'x{n}'" for n in range(4)), "an order to enforce"
            )

    with_orders(tmp_path, test)


def test_the_manager_refuses_what_cannot_be_meant(tmp_path: Path) -> None:
    """With words that help; nothing of it reaches the bus."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        for what in ("10.0.0.0/33", "ten", "icmp 10.0.0.1:1 10.0.0.2:2", "tcp 10.0.0.1 10.0.0.2", ""):
            with pytest.raises(RefusedError, match="write a prefix like"):
                await orders.declare(what, "", None)
        with pytest.raises(NotFoundError):
            await orders.take_back("10.0.0.0/8", [])
        with pytest.raises(RefusedError, match="name=\\*"):
            await orders.enforce("")
        with pytest.raises(NotFoundError):
            await orders.release("name=web", [])
        assert (orders.suspects, orders.enforced) == ([], [])

    with_orders(tmp_path, test)


def test_evidence_is_a_sample_with_all_that_was_seen(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """At most four packets of an entry and second, each with label, flow, entry and its first bytes."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                await orders.declare("10.1.0.0/24", "", None)
                await in_effect(bus, "10.1.0.0/24")
                begun = time.time_ns()
                workload.send(200, size=300, port=53)
                found: list[Evidence] = []

                async def some() -> bool:
                    payloads = await messages(server, "evidence")
                    found[:] = [e for p in payloads for e in msgspec.json.decode(p, type=list[Evidence])]
                    return bool(found)

                await until(some, 30)
                seconds = (time.time_ns() - begun) // 10**9 + 2
                assert 1 <= len(found) <= 4 * seconds
                for one in found:
                    assert (one.label, one.port, one.direction) == (label, workload.port, "egress")
                    assert (one.entry, one.src, one.dst) == ("10.1.0.0/24", "10.1.0.1", "10.1.0.2")
                    assert (one.dst_port, one.protocol, one.length, one.dropped) == (53, 17, 328, False)
                    assert len(one.packet) == 128
                    assert one.packet[12:20] == bytes((10, 1, 0, 1, 10, 1, 0, 2))
                    assert begun - 10**9 < one.time < time.time_ns() + 10**9

    with_orders(tmp_path, test)


def test_evidence_that_finds_no_room_in_the_outbox_is_counted(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """The bus is away and the outbox full: three packets of which evidence was due are three lost."""

    async def test(server: RunningServer, state: Path, orders: Orders, bus: Bus) -> None:
        settings = {"netns": netns, "cgroup_root": cgroup, "outbox_max_bytes": 0}
        async with harness(server, state, **settings) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                await orders.declare("10.1.0.2", "", None)
                await in_effect(bus, "10.1.0.2/32")
                await until(lambda: _says(not h.probe.pending_bytes), 30)
                server.kill()
                workload.send(1, port=1)
                await until(lambda: _says(bool(h.probe.pending_bytes)), 30)
                before = h.probe._evidence.lost
                workload.send(3, port=2)
                lost = {label: {"outbox_full": 3}}
                await until(lambda: _says(_losses(h) == lost), 30)
                assert (before, h.probe._evidence.lost) == (0, 3)

    with_orders(tmp_path, test)


def _losses(h: Harness) -> dict[int, dict[str, int]]:
    return {label: tally.lost for label, tally in h.probe.ledger().items() if tally.lost}
