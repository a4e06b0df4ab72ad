"""When the probe cuts."""

from eastwest.probe.cutter import next_due


def test_early_cuts_do_not_put_off_the_next_timed_one() -> None:
    """Ten cuts at once (a burst of orders): the timed cut comes one interval later, not eleven."""
    due = 100.0
    for _ in range(10):
        due = next_due(due, 100.0, 5.0)
    assert due == 105.0


def test_timed_cuts_keep_their_rhythm() -> None:
    """A cut that took long does not shift those after it; after a longer one the next is due at once."""
    assert next_due(100.0, 101.5, 5.0) == 105.0
    assert next_due(100.0, 108.0, 5.0) == 108.0
