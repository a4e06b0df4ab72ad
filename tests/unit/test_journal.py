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
        assert (journal.undone, journal.outgoing()) == (True, None)
        with journal.transaction():
            journal.save_series()
    with Journal(tmp_path / "probe.db") as journal:
        assert journal.take("serial") == 3


def test_messages_leave_in_order_and_only_when_acknowledged(tmp_path: Path) -> None:
    with Journal(tmp_path / "probe.db") as journal:
        with journal.transaction():
            for sequence in (1, 2):
                journal.send(message(sequence))
        assert journal.outgoing() == journal.outgoing() == message(1)
        assert journal.outbox_bytes() == 8
        journal.sent(message(1))
        assert journal.outgoing() == message(2)
        assert journal.unsent(1) == [(2, {3: 4})]


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
