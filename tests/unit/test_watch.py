"""Watches, the book of alerts and horizons, by themselves."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from typing import Any

import msgspec
import pytest

from eastwest.bus.messages import Cost, HostReport, Silence
from eastwest.errors import ConfigError, EastwestError, StoreError
from eastwest.manager.fleet import Member
from eastwest.store.detection import Pattern
from eastwest.watch.alert import Alert, Finding, Key
from eastwest.watch.book import Book, Moment
from eastwest.watch.config import DetectConfig
from eastwest.watch.definition import Definition, check_silence
from eastwest.watch.detectors import Detectors
from eastwest.watch.horizon import Horizons
from eastwest.watch.peers import Known
from tests.system.fake_probe import workload

SANE = {"name": "w", "match": "service=web", "condition": "rate_above", "threshold": 10}


def moment(at: float, silenced: bool = False, unknown: bool = False) -> Moment:
    return Moment(int(at * 10**9), at, lambda _: silenced, lambda _: unknown)


def finding(figure: float = 7.0, **more: Any) -> Finding:
    told: dict[str, Any] = {"key": Key("rate_above", "w", 1, "")}
    told |= {"severity": "warning", "figure": figure, "threshold": 5.0, "unit": "packets/s", "text": "much"}
    return Finding(**(told | more))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a b"}, "watch 'a b': that is not a name; use up to 64 letters"),
        ({"name": ""}, "that is not a name"),
        ({"match": "colour=red"}, "'colour=red' is not a selector condition"),
        ({"match": "name=" + "x" * 1000}, "the selector is too long"),
        ({"threshold": 0}, "rate_above with threshold 0.0"),
        ({"threshold": float("nan")}, "rate_above with threshold nan"),
        ({"threshold": -1.0}, "rate_above with threshold -1.0"),
        ({"condition": "suspect_share", "threshold": 1.0}, "give a part of 1"),
        ({"window_seconds": 0}, "window_seconds is out of range; choose 1 to 3600"),
        ({"condition": "silence", "window_seconds": 31 * 86400}, "choose 1 to 2592000"),
        ({"for_seconds": -1}, "for_seconds is out of range"),
        ({"learn_seconds": 1}, "learn_seconds is out of range"),
    ],
)
def test_a_watch_that_makes_no_sense_is_refused(fields: dict[str, object], said: str) -> None:
    """Whatever it comes from; the message names the watch and what to do."""
    with pytest.raises(ConfigError) as caught:
        msgspec.convert(SANE | fields, Definition)
    assert said in str(caught.value)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `treshold`"):
        msgspec.convert(SANE | {"treshold": 1}, Definition)


@pytest.mark.parametrize("fields", [{}, {"alert": "a", "match": "name=x"}, {"match": "x"}])
def test_a_silence_is_of_an_alert_or_of_a_selector(fields: dict[str, str]) -> None:
    with pytest.raises(EastwestError):
        check_silence(Silence(id="1", until=1, **fields))


def test_an_alert_is_raised_once_goes_on_and_ends_after_two_misses() -> None:
    """Firing, updated with the latest figure, still firing after one miss, resolved after two; then anew."""
    book = Book(10)
    (alert,) = book.apply([finding(7.0)], moment(1)).raised
    assert (alert.state, alert.figure, alert.first_seen) == ("firing", 7.0, 10**9)
    changes = book.apply([finding(9.0)], moment(2))
    assert (changes.raised, changes.changed) == ([], {})
    assert (alert.figure, alert.last_seen, alert.first_seen) == (9.0, 2 * 10**9, 10**9)
    assert book.apply([], moment(3)).resolved == []
    book.apply([finding(6.0)], moment(4))
    assert book.apply([], moment(5)).resolved == []
    changes = book.apply([], moment(6))
    assert changes.resolved == [alert]
    assert (alert.state, alert.resolved_at, alert.last_seen) == ("resolved", 6 * 10**9, 4 * 10**9)
    assert book.alerts == []
    assert book.apply([finding()], moment(7)).raised[0].id != alert.id


def test_a_condition_must_hold_before_it_is_an_alert() -> None:
    """For 10 s without a gap; a gap begins anew."""
    book = Book(10)
    held = finding(hold_seconds=10)
    for at, raised in ((0, 0), (9, 0), (10, 1)):
        assert len(book.apply([held], moment(at)).raised) == raised
    other = finding(hold_seconds=10, key=Key("rate_above", "w", 2, ""))
    book.apply([other], moment(11))
    book.apply([], moment(15))
    assert book.apply([other], moment(21)).raised == []
    assert len(book.apply([other], moment(31)).raised) == 1


def test_what_is_unknown_stays_as_it_is_for_an_hour() -> None:
    book = Book(10)
    (alert,) = book.apply([finding()], moment(0)).raised
    for at in (10, 1000, 3599):
        assert book.apply([], moment(at, unknown=True)).changed == {}
    assert alert.state == "firing"
    book.apply([], moment(3601, unknown=True))
    assert book.apply([], moment(3602, unknown=True)).resolved == [alert]


def test_a_silenced_alert_is_told_when_the_silence_ends() -> None:
    """Not while it holds; that it ended in silence is noted."""
    book = Book(10)
    changes = book.apply([finding()], moment(1, silenced=True))
    (alert,) = changes.changed.values()
    assert (alert.state, changes.raised) == ("silenced", [])
    assert book.apply([finding()], moment(2)).raised == [alert]
    book.apply([finding()], moment(3, silenced=True))
    book.apply([], moment(4, silenced=True))
    changes = book.apply([], moment(5, silenced=True))
    assert (alert.state, changes.resolved, list(changes.changed)) == ("resolved", [alert], [alert.id])
    assert changes.silenced == {alert.id}


def test_there_is_room_for_so_many_alerts() -> None:
    """The rest is counted, and raised when there is room."""
    book = Book(2)
    found = [finding(key=Key("silence", "w", label, "")) for label in (1, 2, 3)]
    assert len(book.apply(found, moment(1)).raised) == 2
    assert book.refused == 1
    book.apply(found[1:], moment(2))
    assert len(book.apply(found[1:], moment(3)).raised) == 0
    assert len(book.apply(found[1:], moment(4)).raised) == 1
    assert book.refused == 0


def test_one_workload_does_not_fill_the_book() -> None:
    """Of its 457 scans 20 are alerts, and the last tells of the others; another workload's is raised, and
    what is open stays open whatever comes."""
    book = Book(100)
    scans = [finding(key=Key("port_scan", "", 1, f"to {number}")) for number in range(457)]
    other = finding(key=Key("port_scan", "", 2, ""))
    raised = book.apply([*scans, other], moment(1)).raised
    assert [alert.label for alert in raised] == [1] * 20 + [2]
    assert book.refused == 0
    texts = ["label 1: much"] * 19 + ["label 1: much (and 437 more)", "label 2: much"]
    for at in (2, 3, 4):
        assert [alert.text for alert in book.alerts] == texts
        changes = book.apply([*reversed(scans), other], moment(at))
        assert (changes.raised, changes.resolved) == ([], [])


def test_one_tenant_does_not_fill_the_book() -> None:
    """With sixty scanning workloads it has three quarters; of the rest each tenant has three quarters again,
    and what is open stays open whatever comes."""

    def scans(tenant: str, first: int, labels: int) -> list[Finding]:
        whose = range(first, first + labels)
        return [
            finding(key=Key("port_scan", "", n, f"to {scan}"), workload=workload(n, "w", tenant=tenant))
            for n in whose
            for scan in range(20)
        ]

    book = Book(1000)
    attack = scans("a", 1, 60)
    assert len(book.apply(attack, moment(1)).raised) == 750
    assert book.refused == 450
    others = [*scans("b", 100, 10), *scans("c", 200, 10)]
    raised = book.apply([*attack, *others], moment(2)).raised
    assert Counter(alert.tenant for alert in raised) == {"b": 188, "c": 47}
    changes = book.apply([*others, *attack], moment(3))
    assert (changes.raised, changes.resolved, len(book.alerts)) == ([], [], 985)


def test_a_restored_alert_is_the_same_alert() -> None:
    """It is not raised again, and ends like any other."""
    first = Book(10)
    (alert,) = first.apply([finding()], moment(1)).raised
    again = msgspec.json.decode(msgspec.json.encode(alert), type=Alert)
    book = Book(10)
    book.restore([again], 0.0)
    assert book.apply([finding(8.0)], moment(2)).raised == []
    assert (again.id, again.figure) == (alert.id, 8.0)


class Cuts:
    """A store that knows which cuts are stored. Only this question of the real one is asked."""

    def __init__(self) -> None:
        self.stored: set[tuple[str, int, int]] = set()

    async def stored_cuts(self, cuts: Collection[tuple[str, int, int]]) -> set[tuple[str, int, int]]:
        return self.stored & set(cuts)


def member(cut: int, at: int, age: float = 0.0) -> Member:
    report = HostReport(
        host="h", boot=1, cut=cut, time=at, started_at=0, version="", interval_seconds=1.0, hooks=[],
        interfaces=[], malformed={}, cost=Cost(0, 0, [], 0), problems=[],
    )  # fmt: skip
    return Member(report, time.monotonic() - age)


def test_a_horizon_is_the_latest_report_whose_cut_is_stored() -> None:
    """It moves only as rows are stored; it is away when it has not moved for longer than reports take."""

    async def scenario() -> None:
        store = Cuts()
        horizons = Horizons(store)  # type: ignore[arg-type]
        await horizons.update([member(5, 100)], 1.0)
        assert (horizons.times, horizons.away) == ({}, {"h": float("inf")})
        store.stored = {("h", 1, 5)}
        await horizons.update([member(9, 200)], 1.0)
        assert horizons.times == {"h": 100}
        assert horizons.steady("h", time.monotonic() + 7) == pytest.approx(7, abs=5)
        store.stored |= {("h", 1, 9)}
        await horizons.update([member(12, 300)], 1.0)
        assert horizons.times == {"h": 200}
        await horizons.update([], 1.0)
        assert horizons.times == {"h": 200}

        late = Horizons(store)  # type: ignore[arg-type]
        await late.update([member(9, 200, age=30)], 1.0)
        assert late.times == {}
        assert late.away["h"] == pytest.approx(30, abs=5)
        assert late.steady("h", time.monotonic()) == 0.0

        nothing = Horizons(store)  # type: ignore[arg-type]
        await nothing.update([member(0, 50)], 1.0)
        assert nothing.times == {"h": 50}

    asyncio.run(scenario())


def test_a_host_whose_rows_come_late_is_told_from_one_that_is_away() -> None:
    """While it reports and nothing is stored; one that does not report either is only away. However many
    reports wait, the horizon moves on with the first that is stored."""

    async def scenario() -> None:
        store = Cuts()
        horizons = Horizons(store)  # type: ignore[arg-type]
        await horizons.update([member(1, 1, age=30)], 1.0)
        assert (list(horizons.away), horizons.late) == (["h"], {})
        for cut in range(2, 101):
            await horizons.update([member(cut, cut, age=30 - 0.3 * cut)], 1.0)
        assert horizons.times == {}
        assert horizons.late["h"] == pytest.approx(30, abs=5)
        assert len(horizons._hosts["h"].reports) <= 16
        store.stored = {("h", 1, cut) for cut in range(1, 100)}
        await horizons.update([], 1.0)
        assert horizons.late == {}
        assert 80 <= horizons.times["h"] < 100
        store.stored = set()
        await horizons.update([member(101, 101)], 1.0)
        assert horizons.late == {}

    asyncio.run(scenario())


def test_detectors_that_fail_stop_no_watch() -> None:
    """What they found last holds, and health says why; they are back as soon as the store is."""

    class Store:
        fails = True

        async def patterns(self, *_: object) -> list[Pattern]:
            if self.fails:
                raise StoreError("the question takes the store too long", "see to it")
            return [Pattern("port_scan", "10.0.0.1", "10.0.0.2", 0, 1, 0, 150, 0, 1)]

    async def scenario() -> None:
        store: Any = Store()
        detectors = Detectors(DetectConfig(), store, Horizons(store))
        said = "scans and floods are not looked for: the question takes the store too long; see to it"
        for fails, figures, problem in ((True, [], said), (False, [150.0], None), (True, [150.0], said)):
            store.fails, detectors._due = fails, 0.0
            assert [found.figure for found in await detectors.evaluate({})] == figures
            assert detectors.problem == problem

    asyncio.run(scenario())


def test_known_peers_are_forgotten_in_time() -> None:
    """Each when its time is over, later where it was told of again; of one label the last so many."""
    known = Known(3)
    web, db = ("w", 1), ("w", 2)
    known.remember(web, ["a", "b"], 10.0)
    known.remember(db, ["a"], 11.0)
    known.remember(web, ["a"], 20.0)
    known.forget(10.0)
    assert [known.has(web, "a"), known.has(web, "b"), known.has(db, "a"), len(known)] == [
        True,
        False,
        True,
        2,
    ]
    known.remember(web, ["c", "d", "e"], 21.0)
    assert [known.has(web, peer) for peer in "acde"] == [False, True, True, True]
    known.forget(21.0)
    assert len(known) == 0
    assert not known.has(db, "a")


def test_detectors_complain_of_looks_that_are_slow_again_and_again() -> None:
    """Of the third in a row that takes over a tenth of the window; one that is quick ends it."""
    store: Any = Cuts()
    detectors = Detectors(DetectConfig(window_seconds=10), store, Horizons(store))
    said = []
    for seconds in (1.1, 1.1, 0.9, 1.1, 1.1, 1.25, 0.5):
        assert detectors.pause(seconds) == pytest.approx(10 * seconds)
        said.append(detectors.problem)
    assert said[:5] + said[6:] == [None] * 6
    assert said[5] is not None and "looked for every 12 s only; raise window_seconds" in said[5]
