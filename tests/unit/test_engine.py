"""Container engines as no honest one is: they hang, babble and never stop. Each is a socket of the test's."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eastwest.bus.messages import Facts
from eastwest.inventory import containers, engine
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.containers import Containers
from eastwest.inventory.facts import facts_of
from eastwest.inventory.scope import Scope

IDS = [digit * 64 for digit in "0123456789abcdef"]
Route = Callable[[asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes, status: str = "200 OK", *headers: str) -> Route:
    """A whole answer."""

    async def write(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return write


def endless(begin: bytes, more: bytes) -> Route:
    """An answer that goes on as long as anybody reads."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while not writer.is_closing():
            writer.write(more)
            await writer.drain()

    return write


async def hang(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        await asyncio.sleep(0.01)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await asyncio.sleep(0.01)


async def babble(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\xff220 smtp.example.com ready\r\n")


def listing(*ids: str, name: str = "c") -> bytes:
    return json.dumps(
        [{"Id": one, "Names": [f"/{name}{one[0]}"], "State": "running"} for one in ids]
    ).encode()


def container(number: str, name: str = "c", **more: Any) -> bytes:
    return json.dumps({"Id": number, "Name": f"/{name}{number[0]}", "State": {"Pid": 1}, **more}).encode()


UNPACKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


class FakeEngine:
    """Answers what `routes` say by path; events hang and a ping is well unless they say otherwise."""

    def __init__(self, socket: Path, routes: dict[str, Route]) -> None:
        self.socket = socket
        self.routes: dict[str, Route] = {
            "/_ping": reply(b"OK"),
            "/events": hang,
            "/containers/json": reply(b"[]"),
        } | routes
        self.asked: list[str] = []
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def close(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*(task for task in self._open.values() if task))

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.current_task()
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                path = request.split()[1].decode().partition("?")[0]
                self.asked.append(path)
                await self.routes.get(path, reply(b"{}", "404 Not Found"))(writer)
                await writer.drain()
                if path == "/events":
                    break
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def following(fake: FakeEngine) -> AsyncIterator[Containers]:
    """A source that follows a fake engine, and is still following it at the end."""
    server = await asyncio.start_unix_server(fake.answer, fake.socket, limit=1 << 16)
    source = Containers("docker", fake.socket, expected=True, scope=Scope(), config=InventoryConfig())
    task = asyncio.create_task(source.run(lambda: None))
    try:
        yield source
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        await fake.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as a test can wait for; every process is in the cgroup of the container last asked for."""
    monkeypatch.setattr(engine, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(engine, "_LIST_SECONDS", 0.6)
    monkeypatch.setattr(containers, "_PING_SECONDS", 0.05)
    monkeypatch.setattr(containers, "_RETRY_SECONDS", 0.05)


@pytest.mark.parametrize(
    ("path", "route", "problem"),
    [
        ("/_ping", hang, "does not answer within 0.3 s; restart its service"),
        ("/_ping", drip, "does not answer within 0.3 s"),
        ("/_ping", babble, "cannot be asked"),
        ("/_ping", reply(b"", "500 Internal Server Error"), "answers with status 500; see the log"),
        ("/_ping", endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "cannot be asked"),
        ("/_ping", endless(UNPACKED, CHUNK), "more than 1024 bytes"),
        ("/containers/json", hang, "does not answer within 0.6 s"),
        ("/containers/json", endless(UNPACKED, CHUNK), "more than 33554432 bytes"),
        ("/containers/json", reply(b'[{"x":' + b"[" * 100_000), "recursion"),
        ("/containers/json", reply(b"\xff"), "malformed"),
        ("/containers/json", reply(b"{}"), "Expected `array`"),
        ("/containers/json", reply(b'[{"Id": 7}]'), "Expected `str`"),
        ("/containers/json", reply(b'[{"Id": "\xff"}]'), "decode"),
        ("/containers/json", reply(b"x", "200 OK", "Content-Encoding: gzip"), "malformed"),
        (
            "/containers/json",
            reply(listing(*(f"{n:064x}" for n in range(10_001)))),
            "more than 10000 containers",
        ),
        ("/events", babble, "cannot be asked"),
        ("/events", reply(b""), "ended its stream of events"),
        ("/events", reply(b"not json\n"), "malformed"),
        ("/events", reply(b'{"Actor": []}\n'), "Expected `object`"),
        ("/events", endless(UNPACKED, CHUNK), "an event longer than 1048576 bytes"),
    ],
)
def test_a_broken_engine_is_named_and_asked_again(
    path: str, route: Route, problem: str, tmp_path: Path
) -> None:
    """Whatever it does, the source goes on, and is well as soon as the engine is."""

    async def test() -> None:
        fake = FakeEngine(tmp_path / "s", {path: route})
        async with following(fake) as source:
            await until(lambda: source.problem and problem in source.problem)
            assert source.problem and source.problem.startswith("docker: ") and "; " in source.problem
            fake.routes |= FakeEngine(fake.socket, {}).routes
            await until(lambda: source.problem is None)

    asyncio.run(test())


def test_one_container_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hangs, one has no number, one is nonsense; the rest are claimed, in the end they too."""
    asked = ""

    async def test() -> None:
        def inside(number: str) -> Route:
            async def write(writer: asyncio.StreamWriter) -> None:
                nonlocal asked
                asked = number
                await reply(container(number))(writer)

            return write

        fake = FakeEngine(
            tmp_path / "s",
            {
                "/containers/json": reply(listing(*IDS[:4])),
                f"/containers/{IDS[0]}/json": hang,
                f"/containers/{IDS[1]}/json": reply(container(IDS[1], State={"Pid": -1})),
                f"/containers/{IDS[2]}/json": reply(b"[]"),
                f"/containers/{IDS[3]}/json": inside(IDS[3]),
            },
        )
        async with following(fake) as source:
            await until(source.answered.is_set)
            assert [claim.identity for claim in source.claims] == [f"container:{IDS[3]}"]
            named = [f"container {one[:12]}: " for one in IDS[:3]]
            await until(lambda: all(one in (source.problem or "") for one in named))
            assert IDS[3][:12] not in (source.problem or "")
            fake.routes |= {f"/containers/{one}/json": inside(one) for one in IDS[:3]}
            await until(lambda: len(list(source.claims)) == 4 and source.problem is None)

    monkeypatch.setattr(containers, "_LIST_SECONDS", 0.3)
    monkeypatch.setattr(containers, "cgroup_of", lambda pid: f"/docker/{asked}")
    asyncio.run(test())


def test_a_process_that_is_another_containers_by_now_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number was given again between two looks: nothing is claimed, and its namespace is nobody's."""
    looks: list[int] = []

    def cgroup_of(pid: int) -> str:
        looks.append(pid)
        return f"/docker/{IDS[0] if len(looks) == 1 else IDS[1]}"

    async def test() -> None:
        routes = {
            "/containers/json": reply(listing(IDS[0])),
            f"/containers/{IDS[0]}/json": reply(container(IDS[0])),
        }
        async with following(FakeEngine(tmp_path / "s", routes)) as source:
            await until(source.answered.is_set)
            assert (list(source.claims), source.problem) == ([], None)

    monkeypatch.setattr(containers, "cgroup_of", cgroup_of)
    asyncio.run(test())


def test_a_container_without_a_cgroup_of_its_own_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells its traffic from its engine's."""

    async def test() -> None:
        routes = {
            "/containers/json": reply(listing(IDS[0], name="\\u001b")),
            f"/containers/{IDS[0]}/json": reply(container(IDS[0], name="\x1b")),
        }
        async with following(FakeEngine(tmp_path / "s", routes)) as source:
            await until(source.answered.is_set)
            assert list(source.claims) == []
            assert (source.problem or "").startswith(
                "docker: container '\\x1b0' has no cgroup of its own, so its traffic is not told apart: "
            )

    monkeypatch.setattr(containers, "cgroup_of", lambda pid: "/system.slice/docker.service")
    asyncio.run(test())


def test_what_no_event_told_is_found_by_comparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed and gone without a word: the next list says so."""
    monkeypatch.setattr(containers, "_LIST_SECONDS", 0.1)
    monkeypatch.setattr(containers, "cgroup_of", lambda pid: f"/docker/{IDS[0]}")

    async def test() -> None:
        one = f"/containers/{IDS[0]}/json"
        routes = {"/containers/json": reply(listing(IDS[0])), one: reply(container(IDS[0]))}
        fake = FakeEngine(tmp_path / "s", routes)
        async with following(fake) as source:
            await until(lambda: [claim.name for claim in source.claims] == ["c0"])
            asked = fake.asked.count(one)
            listed = fake.asked.count("/containers/json")
            await until(lambda: fake.asked.count("/containers/json") > listed + 2)
            assert fake.asked.count(one) == asked
            fake.routes |= {
                "/containers/json": reply(listing(IDS[0], name="d")),
                one: reply(container(IDS[0], name="d")),
            }
            await until(lambda: [claim.name for claim in source.claims] == ["d0"])
            fake.routes["/containers/json"] = reply(b"[]")
            del fake.routes[one]
            await until(lambda: not list(source.claims))

    asyncio.run(test())


def test_a_process_that_ended_without_an_event_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says so before the next list does."""
    there = [f"/docker/{IDS[0]}"]

    async def test() -> None:
        one = f"/containers/{IDS[0]}/json"
        routes = {"/containers/json": reply(listing(IDS[0])), one: reply(container(IDS[0]))}
        fake = FakeEngine(tmp_path / "s", routes)
        async with following(fake) as source:
            await until(lambda: [claim.name for claim in source.claims] == ["c0"])
            fake.routes[one] = reply(container(IDS[0], State={"Pid": 0}))
            there.clear()
            await until(lambda: not list(source.claims))
            assert fake.asked.count("/containers/json") == 1

    monkeypatch.setattr(containers, "cgroup_of", lambda pid: there[0] if there else None)
    asyncio.run(test())


@pytest.mark.parametrize("turns", range(5))
def test_it_ends_when_told_to_also_as_an_event_comes(turns: int, tmp_path: Path) -> None:
    """Cancelled in the very turns of the event loop in which an event wakes it."""

    async def test() -> None:
        fake = FakeEngine(tmp_path / "s", {})
        async with following(fake) as source:
            await until(source.answered.is_set)
            await until(lambda: fake.asked.count("/_ping") > 2)
            (task,) = [t for t in asyncio.all_tasks() if t.get_name() == "docker containers"]
            source._note(IDS[0])
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            async with asyncio.timeout(10):
                await asyncio.wait([task])

    asyncio.run(test())


def test_a_flood_of_events_asks_for_what_there_is_only(tmp_path: Path) -> None:
    """Events of other things, of numbers that are none, and the same again: bounded, no problem."""
    lines = [{"Type": "container", "Action": "start", "Actor": {"ID": one}} for one in ("../x", "", IDS[0])]
    lines += [{"Type": "image", "Action": "start", "Actor": {"ID": IDS[1]}}, {"Type": "container"}]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode() * 200

    async def test() -> None:
        flood = endless(UNPACKED, f"{len(text):x}\r\n".encode() + text + b"\r\n")
        fake = FakeEngine(tmp_path / "s", {"/events": flood})
        async with following(fake) as source:
            await until(lambda: fake.asked.count("/_ping") > 10)
            assert set(fake.asked) == {"/_ping", "/events", "/containers/json", f"/containers/{IDS[0]}/json"}
            assert (list(source.claims), source.problem) == ([], None)

    asyncio.run(test())


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0", 0),
        ("4294967295", 4294967295),
        ("4294967296", None),
        ("-1", None),
        ("1.0", None),
        ("٣", None),
        (" 1", None),
        ("1" * 5000, None),
    ],
)
def test_a_service_id_is_a_number_of_32_bits(value: str, number: int | None) -> None:
    """What is none is refused by name; the other labels hold."""
    facts, refused = facts_of({"eastwest.service_id": value, "eastwest.service": "s"}, InventoryConfig())
    assert facts == Facts(service="s", service_id=number)
    assert len(refused) == (number is None)
    assert all(len(one) < 200 for one in refused)


def test_labels_have_the_keys_that_the_settings_say() -> None:
    """Those of others, and empty ones, say nothing; one too long is refused."""
    config = InventoryConfig(tenant_label="com.docker.compose.project", service_label="app")
    labels = {"com.docker.compose.project": "shop\n", "app": "", "eastwest.service": "no"}
    assert facts_of(labels, config) == (Facts(tenant="shop\\n"), [])
    facts, refused = facts_of({"app": "x" * 256}, config)
    assert (facts, refused) == (Facts(), ["its label app is longer than 255 characters"])
