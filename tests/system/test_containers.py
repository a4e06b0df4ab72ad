"""What a real podman says of its containers, asked the way docker is asked too."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from eastwest.bus.messages import Facts
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.containers import Containers
from eastwest.inventory.model import Claim
from eastwest.inventory.scope import Scope
from eastwest.kernel.netns import cookie
from tests.system.podman_site import PodmanSite

SECONDS = 60.0


class Following:
    """A source that is being followed."""

    def __init__(self, source: Containers) -> None:
        self.source = source
        self.heard = asyncio.Event()

    @property
    def claims(self) -> dict[str, Claim]:
        """By name."""
        return {claim.name: claim for claim in self.source.claims}

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition; fail if it does not hold in time."""
        try:
            async with asyncio.timeout(SECONDS):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not in time: {what}; {self.claims}, {self.source.problem}") from None

    async def knows(self, *names: str) -> None:
        await self.until(lambda: self.claims.keys() == set(names), f"to know {names}")


@asynccontextmanager
async def following(socket: Path, scope: Scope, expected: bool = True) -> AsyncIterator[Following]:
    """Follow an engine."""
    source = Containers("podman", socket, expected=expected, scope=scope, config=InventoryConfig())
    one = Following(source)
    task = asyncio.create_task(source.run(one.heard.set))
    try:
        yield one
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)


def scope_of(netns: Path, cgroup: Path) -> Scope:
    return Scope(netns, f"/{cgroup.name}")


def test_a_container_is_claimed_while_it_has_a_process(podman: PodmanSite, netns: Path, cgroup: Path) -> None:
    """Started, paused, renamed, restarted, stopped, removed: one identity, and the newest name."""

    async def test() -> None:
        podman.serve()
        async with following(podman.socket, scope_of(netns, cgroup)) as f:
            await f.until(f.source.answered.is_set, "an answer")
            labels = {"eastwest.tenant": "a", "eastwest.service": "shop", "eastwest.service_id": "4294967295"}
            told = [f"--label={key}={value}" for key, value in labels.items()]
            number = await podman.run("one", "--network=host", *told)
            await f.knows("one")
            expected = Claim(
                f"container:{number}",
                "container",
                "one",
                Facts(tenant="a", service="shop", service_id=4294967295),
                cgroup=f"/libpod-{number}",
                sockets=True,
            )
            assert f.claims == {"one": expected}
            await podman.podman("pause", "one")
            await podman.podman("rename", "one", "uno")
            await f.knows("uno")
            await podman.podman("unpause", "uno")
            assert f.claims["uno"].identity == expected.identity
            await podman.podman("stop", "uno")
            await f.knows()
            await podman.podman("start", "uno")
            await f.knows("uno")
            await podman.podman("restart", "uno")
            await podman.run("brief", "--rm", "--network=host", command=("/busybox/busybox", "true"))
            await f.knows("uno")
            assert f.claims["uno"].identity == expected.identity
            await podman.podman("rm", "--force", "uno")
            await f.knows()
            assert f.source.problem is None

    asyncio.run(test())


def test_whose_a_namespace_is(podman: PodmanSite, netns: Path, cgroup: Path) -> None:
    """Its maker claims it, who joins it does not; a restart makes another; nobody claims the host's."""

    async def test() -> None:
        podman.serve()
        async with following(podman.socket, scope_of(netns, cgroup)) as f:
            await podman.run("own")
            await podman.run("guest", "--network=container:own")
            await podman.run("host", "--network=host")
            await podman.run("hosts-guest", "--network=container:host")
            await podman.run("entered", f"--network=ns:{netns}")
            await podman.run("alone", "--network=none")
            await f.knows("own", "guest", "host", "hosts-guest", "entered", "alone")
            pid = await podman.podman("inspect", "--format={{.State.Pid}}", "own")
            assert f.claims["own"].netns == cookie(Path(f"/proc/{pid}/ns/net"))
            assert f.claims["alone"].netns not in (0, f.claims["own"].netns, cookie(netns))
            told = {name: (bool(claim.netns), claim.sockets) for name, claim in f.claims.items()}
            assert told == {
                "own": (True, False),
                "guest": (False, False),
                "host": (False, True),
                "hosts-guest": (False, True),
                "entered": (False, True),
                "alone": (True, False),
            }
            first = f.claims["alone"].netns
            await podman.podman("restart", "alone")
            await f.until(
                lambda: "alone" in f.claims and f.claims["alone"].netns not in (0, first), "a new namespace"
            )

    asyncio.run(test())


def test_labels_that_cannot_be_used_are_named(podman: PodmanSite, netns: Path, cgroup: Path) -> None:
    """The container is claimed with the rest of them; the problem goes with the container."""

    async def test() -> None:
        podman.serve()
        async with following(podman.socket, scope_of(netns, cgroup)) as f:
            labels = ("--label=eastwest.service_id=4294967296", "--label=eastwest.tenant=\x1b[31mred")
            await podman.run("odd", "--network=none", *labels)
            await f.knows("odd")
            assert f.claims["odd"].facts == Facts(tenant="\\x1b[31mred")
            assert f.source.problem == (
                "podman: container 'odd': its label eastwest.service_id = '4294967296' is no number up to "
                "4294967295; make it with another"
            )
            await podman.podman("rm", "--force", "odd")
            await f.until(lambda: f.source.problem is None, "the problem to go")

    asyncio.run(test())


def test_a_container_elsewhere_is_none_of_this_hosts(podman: PodmanSite, netns: Path, cgroup: Path) -> None:
    """Another scope on the same machine: seen, and left alone."""

    async def test() -> None:
        podman.serve()
        inner = cgroup / "inner"
        inner.mkdir()
        scope = Scope(netns, f"/{cgroup.name}/inner")
        async with following(podman.socket, scope) as f:
            await podman.run("outside", "--network=host")
            number = await podman.run("inside", "--network=host", f"--cgroup-parent=/{cgroup.name}/inner")
            await f.knows("inside")
            assert f.claims["inside"].cgroup == f"/libpod-{number}"
            await podman.podman("rename", "outside", "still-outside")
            await podman.podman("rename", "inside", "still-inside")
            await f.knows("still-inside")
            assert f.source.problem is None
            await podman.podman("rm", "--all", "--force")

    asyncio.run(test())


def test_a_service_that_dies_is_named_and_found_again(podman: PodmanSite, netns: Path, cgroup: Path) -> None:
    """What it said holds meanwhile; what happened meanwhile is known afterwards."""

    async def test() -> None:
        scope = scope_of(netns, cgroup)
        async with following(podman.socket, scope) as f:
            await f.until(f.source.answered.is_set, "an answer")
            assert f.source.problem == (
                f"podman: there is no socket {podman.socket}; start it (systemctl start podman.socket), or "
                "correct podman in [inventory]"
            )
            podman.serve()
            await podman.run("stays", "--network=host")
            await podman.run("ends", "--network=host")
            await f.knows("stays", "ends")
            assert f.source.problem is None
            podman.kill_service()
            await f.until(lambda: f.source.problem, "a problem")
            await podman.podman("rm", "--force", "ends")
            await podman.run("comes", "--network=host")
            assert f.claims.keys() == {"stays", "ends"}
            podman.serve()
            await f.knows("stays", "comes")
            assert f.source.problem is None

    asyncio.run(test())


def test_an_engine_that_nobody_asked_for_may_be_absent(podman: PodmanSite, netns: Path, cgroup: Path) -> None:
    """No socket is no problem, and one that appears is followed; once it has spoken, it is missed."""

    async def test() -> None:
        async with following(podman.socket, scope_of(netns, cgroup), expected=False) as f:
            await f.until(f.source.answered.is_set, "silence")
            assert (f.source.problem, f.claims) == (None, {})
            podman.serve()
            await podman.run("one", "--network=host")
            await f.knows("one")
            podman.kill_service()
            podman.socket.unlink()
            await f.until(lambda: f.source.problem and "no socket" in f.source.problem, "to be missed")
            assert f.claims.keys() == {"one"}
            await podman.podman("rm", "--force", "one")
            await f.until(lambda: f.source.problem is None, "nothing to be missed")
            await f.knows()

    asyncio.run(test())
