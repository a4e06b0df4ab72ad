"""A real libvirtd and its test driver: domains as they come, go, and change; a daemon that goes or hangs."""

import asyncio
import secrets
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eastwest.bus.messages import Facts
from eastwest.inventory import libvirt as source_module
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.libvirt import Libvirt
from eastwest.inventory.model import Claim
from tests.system.bus_server import until
from tests.system.libvirt_site import Libvirtd, definition, libvirtd

METADATA = '<e:workload xmlns:e="https://eastwest.dev/libvirt/1" tenant="a" service="web" service_id="7"/>'
NAMESPACE = "https://eastwest.dev/libvirt/1"


@pytest.fixture
def daemon(tmp_path: Path, netns: Path, cgroup: Path) -> Iterator[Libvirtd]:
    with libvirtd(tmp_path / "libvirt", netns, cgroup / "libvirt") as running:
        yield running


class Watched:
    """A source at work, and what it says."""

    def __init__(self, source: Libvirt) -> None:
        self.source = source

    @property
    def claims(self) -> dict[str, Claim]:
        return {claim.identity: claim for claim in self.source.claims}

    async def become(self, condition: Callable[[dict[str, Claim]], bool]) -> None:
        """Wait until what is claimed is as wanted."""
        await self.until(lambda: condition(self.claims))

    async def until(self, condition: Callable[[], bool]) -> None:
        async def answer() -> bool:
            return condition()

        try:
            await until(answer, 90)
        except TimeoutError:
            raise AssertionError(f"{self.claims}, {self.source.problem}") from None


@asynccontextmanager
async def watching(uri: str, expected: bool = True) -> AsyncIterator[Watched]:
    source = Libvirt(uri, expected=expected, config=InventoryConfig())
    task = asyncio.create_task(source.run(lambda: None))
    try:
        await asyncio.wait_for(source.answered.wait(), 60)
        yield Watched(source)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def watch(uri: str, test: Callable[[Watched], Awaitable[None]], expected: bool = True) -> None:
    """Run an async test with a source of its own."""

    async def main() -> None:
        async with watching(uri, expected) as watched:
            await test(watched)

    asyncio.run(main())


def ethernet(tap: str) -> str:
    return f"<interface type='ethernet'><target dev='{tap}'/><model type='e1000'/></interface>"


def test_a_domain_is_followed_through_its_life(daemon: Libvirtd) -> None:
    """Claimed while it runs or is paused, with its taps and metadata; renamed, it is the same VM."""
    number, tap, second = str(uuid.uuid4()), f"t{secrets.token_hex(4)}", f"t{secrets.token_hex(4)}"
    identity = f"vm:{number}"

    async def test(watched: Watched) -> None:
        assert watched.claims == {}
        admin = await asyncio.to_thread(daemon.connect)
        try:
            domain = admin.defineXML(definition("web", number, ethernet(tap), metadata=METADATA))
            await asyncio.to_thread(domain.create)
            wanted = Claim(identity, "vm", "web", Facts("a", None, "web", 7), frozenset({tap}))
            await watched.become(lambda claims: claims == {identity: wanted})
            domain.suspend()
            domain.setMetadata(2, '<workload tenant="b"/>', "e", NAMESPACE, 1)
            await watched.become(lambda claims: claims[identity].facts == Facts("b"))
            domain.resume()
            await asyncio.to_thread(domain.attachDevice, ethernet(second))
            await watched.become(lambda claims: claims[identity].devices == {tap, second})
            await asyncio.to_thread(domain.destroy)
            await watched.become(lambda claims: not claims)
            domain.rename("shop")
            await asyncio.to_thread(domain.create)
            await watched.become(lambda claims: identity in claims and claims[identity].name == "shop")
            await asyncio.to_thread(domain.destroy)
            await watched.become(lambda claims: not claims)
            assert watched.source.problem is None
        finally:
            admin.close()

    watch(daemon.uri, test)


def test_a_domain_with_user_mode_networking_says_so(daemon: Libvirtd) -> None:
    """It was started before anybody asked."""
    number = str(uuid.uuid4())
    admin = daemon.connect()
    try:
        admin.createXML(definition("nat", number, "<interface type='user'/>"))
    finally:
        admin.close()

    async def test(watched: Watched) -> None:
        assert watched.claims == {f"vm:{number}": Claim(f"vm:{number}", "vm", "nat", sockets=True)}

    watch(daemon.uri, test)


def test_what_a_killed_daemon_said_holds_and_it_is_picked_up_again(daemon: Libvirtd) -> None:
    """With a problem meanwhile; what happened until it was back is seen then."""
    first, second = str(uuid.uuid4()), str(uuid.uuid4())

    async def test(watched: Watched) -> None:
        admin = await asyncio.to_thread(daemon.connect)
        await asyncio.to_thread(admin.createXML, definition("one", first))
        await watched.become(lambda claims: set(claims) == {f"vm:{first}"})
        await asyncio.to_thread(daemon.kill)
        await watched.until(lambda: watched.source.away)
        assert set(watched.claims) == {f"vm:{first}"}
        assert "start libvirt" in (watched.source.problem or "") or "closed" in (watched.source.problem or "")
        await asyncio.to_thread(daemon.start)
        admin = await asyncio.to_thread(daemon.connect)
        one = admin.lookupByName("one")
        await asyncio.to_thread(one.suspend)  # it waits until the daemon has found its emulator again
        await watched.become(lambda claims: set(claims) == {f"vm:{first}"})
        await asyncio.to_thread(one.destroy)
        await asyncio.to_thread(admin.createXML, definition("two", second))
        await watched.become(lambda claims: set(claims) == {f"vm:{second}"})
        assert watched.source.problem is None
        admin.close()

    watch(daemon.uri, test)


def test_a_daemon_that_hangs_is_a_problem_and_holds_nobody_up(
    daemon: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in mid-life: named, with one thread waiting at most; going on, it is picked up again."""
    monkeypatch.setattr(source_module, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(source_module, "_KEEPALIVE_SECONDS", 1)
    monkeypatch.setattr(source_module, "_KEEPALIVE_COUNT", 1)

    def waiting() -> int:
        return sum(thread.name == "libvirt" for thread in threading.enumerate())

    async def test(watched: Watched) -> None:
        daemon.signal(signal.SIGSTOP)
        try:
            await watched.until(lambda: "does not answer" in (watched.source.problem or ""))
            assert waiting() == 1
        finally:
            daemon.signal(signal.SIGCONT)
        await watched.until(lambda: watched.source.problem is None)
        daemon.signal(signal.SIGSTOP)
        await watched.until(lambda: "does not answer" in (watched.source.problem or ""))

    try:
        watch(daemon.uri, test)
    finally:
        daemon.signal(signal.SIGCONT)


def test_a_thousand_domains_are_followed_one_by_one() -> None:
    """By libvirt's test driver: all are listed, and an event has one of them read, not all."""
    libvirt = pytest.importorskip("libvirt", reason="pip install 'eastwest[libvirt]'")
    numbers = [str(uuid.uuid4()) for _ in range(1000)]
    read: list[int] = []
    describe = source_module._Session.describe

    async def test(watched: Watched) -> None:
        admin = libvirt.open("test:///default")
        before = set(watched.claims)
        made = [
            admin.createXML(definition(f"vm-{n}", number, ethernet(f"t{n}"), kind="test"))
            for n, number in enumerate(numbers)
        ]
        await watched.become(lambda claims: len(claims) == len(before) + 1000)
        assert watched.claims[f"vm:{numbers[7]}"].devices == {"t7"}
        async with watching("test:///default") as another:
            assert another.claims == watched.claims
        read.clear()
        made[7].suspend()
        made[8].destroy()
        await watched.become(lambda claims: f"vm:{numbers[8]}" not in claims)
        assert sum(read) <= 3
        for domain in made[:8] + made[9:]:
            domain.destroy()
        await watched.become(lambda claims: set(claims) == before)
        assert len(watched.source._domains) == len(before)
        admin.close()

    def counted(
        session: source_module._Session, uuids: list[str]
    ) -> dict[str, tuple[Claim | None, list[str]]]:
        read.append(len(uuids))
        return describe(session, uuids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module._Session, "describe", counted)
        watch("test:///default", test)


def test_a_daemon_that_nobody_asked_for_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its sockets are not there it is not asked; one that is asked for is missed."""
    monkeypatch.setattr(source_module, "_SOCKETS", (tmp_path / "none",))
    nowhere = f"qemu+unix:///system?socket={tmp_path}/none"

    async def silent(watched: Watched) -> None:
        assert (watched.claims, watched.source.problem) == ({}, None)

    async def missed(watched: Watched) -> None:
        assert "start libvirt" in (watched.source.problem or "")

    watch(nowhere, silent, expected=False)
    watch(nowhere, missed, expected=True)


def test_a_missing_library_is_a_problem_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional."""
    monkeypatch.setattr(source_module, "import_module", _not_installed)

    async def silent(watched: Watched) -> None:
        assert watched.source.problem is None

    async def missed(watched: Watched) -> None:
        assert "pip install 'eastwest[libvirt]'" in (watched.source.problem or "")

    watch("test:///default", silent, expected=False)
    watch("test:///default", missed, expected=True)


def _not_installed(name: str) -> None:
    raise ImportError(name)
