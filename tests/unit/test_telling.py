"""Who is owed what, with real outputs to ways that take or refuse it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from eastwest.watch.alert import Alert
from eastwest.watch.outputs import Output, Undelivered
from eastwest.watch.telling import Telling

NS = 10**9


def alert(name: str = "a", **fields: Any) -> Alert:
    told: dict[str, Any] = {"state": "firing", "severity": "warning", "first_seen": 1}
    return Alert(
        id=name, kind="silence", watch="quiet", subject="", label=7, figure=1.0, threshold=0.0,
        unit="seconds", text="quiet", last_seen=1, **(told | fields),
    )  # fmt: skip


def resolved(what: Alert) -> Alert:
    what.state, what.resolved_at = "resolved", NS
    return what


class Way:
    """Takes everything, once it is not `closed`."""

    name = "way"

    def __init__(self) -> None:
        self.closed = False
        self.told: list[tuple[str, str]] = []

    async def send(self, alert: Any) -> None:
        if self.closed:
            raise Undelivered("closed", again=False)
        self.told.append((alert["id"], alert["state"]))


class Teller:
    """One output and what it is owed; `tell` waits until everything that was offered has its outcome."""

    def __init__(self, way: Way, output: Output) -> None:
        self.way, self.output = way, output
        self.telling = Telling([output], 100)

    async def tell(self, *alerts: Alert) -> list[Alert]:
        done = self.telling.tell(alerts, NS)
        async with asyncio.timeout(60):
            while len(self.output.outcomes) < len(self.telling._under_way):
                await asyncio.sleep(0.001)
        return done + self.telling.learn(alerts)


def run(scenario: Callable[[Teller], Awaitable[None]], per_minute: int = 100) -> None:
    async def all_of_it() -> None:
        way = Way()
        async with Output(way, 100, per_minute, 1) as output:
            await scenario(Teller(way, output))

    asyncio.run(all_of_it())


def test_who_was_told_of_the_beginning_is_told_of_the_end_though_silenced_between() -> None:
    """Each once; and of what was silenced from its beginning nothing, nor is that a loss."""

    async def scenario(s: Teller) -> None:
        one, other = alert(), alert("b", state="silenced")
        assert await s.tell(one, other) == [one]
        assert await s.tell(one, other) == []
        one.state = "silenced"
        await s.tell(one, other)
        for ending in (one, other):
            s.telling.ended(resolved(ending), silenced=True)
        assert s.telling.owed(one)
        await s.tell()
        assert s.way.told == [("a", "firing"), ("a", "resolved")]
        assert await s.tell() == [one]
        assert not s.telling.owed(one)
        assert not s.output.dropped

    run(scenario)


def test_ends_come_before_beginnings_and_the_grave_before_the_rest() -> None:
    """Of two in a minute; who never got a turn is counted."""

    async def scenario(s: Teller) -> None:
        first = alert("first", told={"way": "firing"})
        s.telling.ended(resolved(first), silenced=False)
        late, grave = alert("late"), alert("grave", severity="critical", first_seen=9)
        await s.tell(late, grave)
        assert s.way.told == [("first", "resolved"), ("grave", "firing")]
        s.telling.ended(resolved(late), silenced=False)
        assert dict(s.output.dropped) == {"never_told": 1}

    run(scenario, per_minute=2)


def test_what_was_not_delivered_is_told_again_while_it_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once, but after a while."""

    async def scenario(s: Teller) -> None:
        one = alert()
        s.way.closed = True
        await s.tell(one)
        s.way.closed = False
        await s.tell(one)
        assert (s.way.told, one.told) == ([], {})
        monkeypatch.setattr("eastwest.watch.telling._AGAIN_SECONDS", 0.0)
        await s.tell(one)
        assert (s.way.told, one.told) == ([("a", "firing")], {"way": "firing"})

    run(scenario)


def test_a_restart_forgets_nothing_that_is_owed() -> None:
    """What was told is in the document: told is not told again, the rest is, also to a new output."""

    async def scenario(s: Teller) -> None:
        told, untold = alert("told", told={"way": "firing"}), alert("untold", told={"gone": "firing"})
        over = resolved(alert("over", told={"way": "firing"}))
        again = [msgspec.json.decode(msgspec.json.encode(one), type=Alert) for one in (told, untold, over)]
        s.telling.restore(again[2:])
        await s.tell(*again[:2])
        assert s.way.told == [("over", "resolved"), ("untold", "firing")]

    run(scenario)


def test_an_output_that_stays_away_is_not_owed_for_ever() -> None:
    """After a day the end is no news any more, and that is counted."""

    async def scenario(s: Teller) -> None:
        one = alert(told={"way": "firing"})
        s.telling.ended(resolved(one), silenced=False)
        s.way.closed = True
        await s.tell()
        assert s.telling.tell([], 86402 * NS) == [one]
        assert dict(s.output.dropped) == {"gave_up": 1, "never_told": 1}

    run(scenario)
