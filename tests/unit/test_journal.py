"""The probe's memory on disk, where the disk refuses."""

from pathlib import Path

import pytest

from eastwest.errors import StoreError
from eastwest.probe.journal import Journal, Outgoing


def message(sequence: int) -> Outgoing:
    return Outgoing(1, sequence, "eastwest.flows.h", b"rows", {3: 4})


def test_a_failed_transaction_leaves_nothing_but_no_number_is_given_twice(tmp_path: Path) -> None:
    """Series go on where memory is; what else was written is as before."""
    with Journal(tmp_path / "probe.db") as journal:
        with journal.transaction():
            assert journal.take("serial") == 1
        with pytest.raises(ZeroDivisionError), journal.transaction():
            assert journal.take("serial") == 2
            journal.send(message(7))
            raise ZeroDivisionError
        assert (journal.undone, journal.outgoing(1)) == (True, [])
        with journal.transaction():
            journal.save_series()
    with Journal(tmp_path / "probe.db") as journal:
        assert journal.take("serial") == 3


def test_messages_leave_in_order_and_only_when_acknowledged(tmp_path: Path) -> None:
    with Journal(tmp_path / "probe.db") as journal:
        with journal.transaction():
            for sequence in (1, 2, 3):
                journal.send(message(sequence))
        assert journal.outgoing(1) == journal.outgoing(1) == [message(1)]
        assert journal.outbox_bytes() == 12
        journal.sent([message(1), message(3)])
        assert journal.outgoing(9) == [message(2)]
        assert journal.unsent(1) == [(2, {3: 4})]


def test_no_message_is_given_out_with_those_before_another_kind_or_boot(tmp_path: Path) -> None:
    """What follows a message of another kind waits until that one has left."""
    with Journal(tmp_path / "probe.db") as journal:
        flows = [message(1), message(2), message(4), message(5)._replace(boot=2)]
        totals = message(3)._replace(subject="eastwest.totals.h", packets={})
        with journal.transaction():
            for one in (*flows, totals):
                journal.send(one)
        left = []
        while given := journal.outgoing(9):
            left.append(given)
            journal.sent(given)
        assert left == [flows[:2], [totals], flows[2:3], flows[3:]]


def test_two_workloads_with_one_label_do_not_pass_unnoticed(tmp_path: Path) -> None:
    with Journal(tmp_path / "probe.db") as journal:
        journal.keep_workload("a", 5, True, b"x")
        journal.keep_workload("a", 5, False, b"y")
        assert (journal.workload("a"), journal.present_workloads()) == (b"y", [])
        with pytest.raises(StoreError, match="UNIQUE"):
            journal.keep_workload("b", 5, True, b"z")


def test_a_path_that_cannot_be_written_is_said_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="writable state_dir"), Journal(tmp_path / "file/probe.db"):
        pass
