"""A source that comes and goes; its daemon is a script of the test's, since only the times are looked at."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from eastwest.errors import InventoryError
from eastwest.inventory import source
from eastwest.inventory.model import Claim
from eastwest.inventory.scope import Scope
from eastwest.inventory.source import Source

ONE = {"1": Claim("container:1", "container", "one")}


class Scripted(Source):
    """Does one thing after the other each time it is asked to follow, then follows for ever."""

    def __init__(self, *acts: Callable[["Scripted"], None]) -> None:
        super().__init__("scripted")
        self.acts: Iterator[Callable[[Scripted], None]] = iter(acts)
        self.done = asyncio.Event()

    async def _follow(self) -> None:
        for act in self.acts:
            act(self)
            return
        self.done.set()
        await asyncio.Event().wait()

    def says(self, claims: dict[str, Claim], refused: str | None = None) -> None:
        self._say(claims, refused)


def says_and_fails(one: Scripted) -> None:
    one.says(ONE)
    raise InventoryError("it went away", "start it")


def pauses_of(
    monkeypatch: pytest.MonkeyPatch, source_: Scripted, changed: Callable[[], None] = lambda: None
) -> list[float]:
    """Run a source to the end of its script; how long it paused between acts."""
    pauses: list[float] = []
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def brief(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(source.asyncio, "sleep", brief)

    async def main() -> None:
        task = asyncio.create_task(source_.run(changed))
        async with asyncio.timeout(30):
            await source_.done.wait()
        task.cancel()

    asyncio.run(main())
    return pauses


def test_one_that_answers_and_fails_is_asked_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a daemon that breaks at its first event is listed twice a second; what it said holds."""
    scripted = Scripted(*[says_and_fails] * 7)
    assert pauses_of(monkeypatch, scripted) == [0.5, 1, 2, 4, 8, 15, 15]
    assert list(scripted.claims) == list(ONE.values())
    assert (scripted.away, scripted.problem) == (True, "scripted: it went away; start it")


def test_going_and_coming_back_are_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an absent source said holds for less; what it says again, for all."""
    scripted = Scripted(says_and_fails, says_and_fails, lambda one: one.says(ONE))
    changes: list[bool] = []
    pauses_of(monkeypatch, scripted, lambda: changes.append(scripted.away))
    assert changes == [False, True, False, True, False]


def test_what_is_not_installed_is_looked_for_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look is cheap, and it is silent without being a problem."""
    scripted = Scripted(*[lambda one: None] * 3)
    assert pauses_of(monkeypatch, scripted) == [0.5, 0.5, 0.5]
    assert (scripted.answered.is_set(), scripted.problem) == (True, None)


def test_words_that_are_refused_are_a_problem_until_they_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims hold all the same."""
    scripted = Scripted(lambda one: one.says(ONE, "a label is no number; mend it"))
    pauses_of(monkeypatch, scripted)
    assert (scripted.away, scripted.problem) == (False, "scripted: a label is no number; mend it")
    assert list(scripted.claims) == list(ONE.values())
    scripted.says(ONE)
    assert scripted.problem is None


def test_a_socket_where_nobody_may_look_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking it says what is wrong. The refusal is made up: root is never refused."""

    def refuse(_: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "exists", refuse)
    assert source.is_there(Path("/run/openvswitch/db.sock"))


@pytest.mark.parametrize(
    ("root", "path", "seen"),
    [
        ("/", "/", "/"),
        ("/", "/a/b", "/a/b"),
        ("/a", "/a", "/"),
        ("/a", "/a/b\n", "/b\\n"),
        ("/a", "/ab", None),
        ("/a", "/", None),
        ("/", "/../outside", None),
    ],
)
def test_a_path_is_seen_from_the_scope(root: str, path: str, seen: str | None) -> None:
    """As the inventory of cgroups has it; what lies outside is of another host."""
    assert Scope(cgroup=root).below(path) == seen
