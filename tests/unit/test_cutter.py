"""Many rows without a look at one; and a large cut, of which no row is lost or doubled."""

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from eastwest.bus.messages import FLOWS, TOTALS
from eastwest.errors import StoreError
from eastwest.kernel.records import record
from eastwest.meter.accounts import Accounts
from eastwest.meter.drain import Cut, Flows
from eastwest.meter.rows import FLOW_ROW
from eastwest.probe import cutter
from eastwest.probe.config import ProbeConfig
from eastwest.probe.cutter import Cutter, _distinct, _runs
from eastwest.probe.journal import Journal

MANY = 5 * cutter._STEP + 1234


def test_each_label_and_source_once() -> None:
    """As a set of pairs would have it, one label after the other."""
    chance = np.random.default_rng(1)
    labels = chance.integers(1, 5, 1000, dtype=np.uint32)
    sources = (
        np.repeat(chance.integers(0, 3, (1000, 2)), 8, axis=1).astype(np.uint8).view("V16").reshape(1000)
    )
    found = _distinct(labels, sources)
    pairs = [(int(labels[i]), bytes(sources[i])) for i in found]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(int(a), bytes(b)) for a, b in zip(labels, sources, strict=True)}
    stretches = [set(labels[found][one].tolist()) for one in _runs(labels[found])]
    assert stretches == [{1}, {2}, {3}, {4}]


def test_no_rows_have_no_pairs() -> None:
    """Nor does one row make two."""
    none = _distinct(np.zeros(0, np.uint32), np.zeros(0, "V16"))
    assert (len(none), _runs(none)) == (0, [])
    assert _distinct(np.ones(1, np.uint32), np.zeros(1, "V16")).tolist() == [0]


def flows(count: int) -> Flows:
    """As many, the packets of each its own number; the second half of another account."""
    keys, counters = np.zeros(count, record("flow_key")), np.zeros(count, record("flow_counters"))
    keys["account"][:] = 1
    keys["account"][count // 2 :] = 2
    counters["packets"] = np.arange(count)
    return Flows(0, keys, counters)


def make(journal: Journal, idle: Flows, decided: tuple[int, ...] = (1, 2)) -> tuple[Cutter, Accounts]:
    """A cutter whose kernel has just flipped, with `idle` in the other half."""
    drain, accounts = MagicMock(), Accounts(4)
    drain.generation, drain.idle_flows.return_value = 1, idle
    for account in (1, 2):
        accounts.open(account, account, f"port{account}", 1)
        if account in decided:
            accounts.decide(account, 10 + account)
    registry, lives, evidence = MagicMock(), MagicMock(), MagicMock()
    registry.changed.return_value, evidence.ready.return_value = [], []
    lives.ledger.return_value = {}
    made = Cutter(
        config=ProbeConfig(host="h"),
        boot=1,
        drain=drain,
        accounts=accounts,
        booking=MagicMock(),
        lives=lives,
        registry=registry,
        evidence=evidence,
        journal=journal,
    )
    return made, accounts


def cut_of(idle: Flows) -> Cut:
    counters = np.zeros((4, len(record("account").names or ())), np.uint64)
    return Cut(idle, counters, np.zeros((2, 4), np.uint64))


def sent(journal: Journal) -> dict[int, list[int]]:
    """What is in the outbox: label → packets of each row, in order."""
    found: dict[int, list[int]] = {}
    while messages := journal.outgoing(100):
        for message in messages:
            if message.subject.startswith(FLOWS):
                rows = np.frombuffer(message.payload, FLOW_ROW)
                for label in set(rows["label"].tolist()):
                    found.setdefault(label, []).extend(rows["packets"][rows["label"] == label].tolist())
        journal.sent(messages)
    return found


def halves(count: int) -> dict[int, list[int]]:
    return {11: list(range(count // 2)), 12: list(range(count // 2, count))}


@pytest.mark.parametrize("steps", range(8))
def test_a_probe_killed_between_two_steps_loses_and_doubles_no_row(tmp_path: Path, steps: int) -> None:
    """The next one reads the same half and writes what is not recorded; then the half may be cleared."""
    idle = flows(MANY)
    with Journal(tmp_path / "probe.db") as journal:
        recording = make(journal, idle)[0].record(cut_of(idle))
        for _ in range(steps):
            next(recording, None)
        first = {11: [], 12: []} | sent(journal)
    with Journal(tmp_path / "probe.db") as journal:
        killed_before_the_end = journal.number("drained") == 0
        assert killed_before_the_end == (steps < 6)
        make(journal, idle)[0].adopt()
        assert (journal.number("recorded"), journal.number("drained")) == (0, 1)
        second = {11: [], 12: []} | sent(journal)
        assert {label: first[label] + second[label] for label in first} == halves(MANY)


def test_a_disk_that_refuses_in_the_middle_gets_each_row_once(tmp_path: Path, monkeypatch: Any) -> None:
    """What a failed step has not written is written by the next call."""
    idle = flows(MANY)
    with Journal(tmp_path / "probe.db") as journal:
        made, _ = make(journal, idle)
        send, count = journal.send, 0

        def refuse(message: Any) -> None:
            nonlocal count
            count += 1
            if count in (13, 40):
                raise StoreError("full")
            send(message)

        monkeypatch.setattr(journal, "send", refuse)
        for given in (cut_of(idle), None):
            with pytest.raises(StoreError):
                list(made.record(given))
            assert made.cut() is None
            assert made.time == 0  # nobody is told of a cut that is not recorded
        list(made.record(None))
        assert sent(journal) == halves(MANY)
        assert (journal.number("recorded"), made.time > 0) == (0, True)


def test_rows_that_wait_are_written_with_the_rest_at_once(tmp_path: Path) -> None:
    """From the first row on whose account is not decided; the next cut labels them."""
    idle = flows(MANY)
    with Journal(tmp_path / "probe.db") as journal:
        made, accounts = make(journal, idle, decided=(1,))
        assert len(list(made.record(cut_of(idle)))) == MANY // 2 // cutter._STEP
        assert sent(journal) == {11: list(range(MANY // 2))}
        assert made.held_packets == sum(range(MANY // 2, MANY))
        accounts.decide(2, 12)
        nothing = flows(0)
        list(made.record(cut_of(nothing)))
        assert sent(journal) == {12: list(range(MANY // 2, MANY))}
        assert made.held_packets == 0
    with Journal(tmp_path / "probe.db") as journal:
        assert journal.held() == []


def test_a_cut_with_flows_ends_with_totals(tmp_path: Path) -> None:
    """Also where no total changed: the outbox relies on it."""
    idle = flows(10)
    with Journal(tmp_path / "probe.db") as journal:
        made, accounts = make(journal, idle)
        accounts.update(cut_of(idle).accounts, 1)
        accounts.sent()
        list(made.record(cut_of(idle)))
        kinds = []
        while messages := journal.outgoing(1):
            journal.sent(messages)
            kinds.append(
                (messages[0].subject.rpartition(".")[0], len(messages[0].payload), messages[0].sequence)
            )
        assert [kind for kind, _, _ in kinds] == [FLOWS, TOTALS]
        assert kinds[-1][2] == made.sequence
