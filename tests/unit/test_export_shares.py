"""What is exported as a counter: bounded in number, exact in sum, and never falling."""

from hypothesis import given
from hypothesis import strategies as st

from eastwest.export.shares import Group, Shares


def test_largest_have_a_name_and_the_rest_is_other() -> None:
    """The first to be shown are the largest of the first time; who comes later finds the places taken."""
    shares = Shares(2)
    shares.add([(1, ("a",), [1, 10]), (2, ("b",), [5, 50]), (3, ("c",), [3, 30])])
    assert shares.sums() == {("b",): [5, 50], ("c",): [3, 30], ("other",): [1, 10]}
    shares.add([(1, ("a",), [100, 1000]), (2, ("b",), [5, 50]), (3, ("c",), [4, 31])])
    assert shares.sums() == {("b",): [5, 50], ("c",): [4, 31], ("other",): [100, 1000]}


def test_moved_label_takes_nothing_along() -> None:
    """A workload given to another tenant counts there from then on; what it counted before stays."""
    shares = Shares(9)
    shares.add([(1, ("a",), [10])])
    shares.add([(1, ("b",), [12])])
    assert shares.sums() == {("a",): [10], ("b",): [2]}


FIGURES = st.lists(st.tuples(st.integers(1, 4), st.sampled_from("abcd"), st.integers(0, 100)), max_size=5)


@given(st.integers(0, 3), st.lists(FIGURES, max_size=6))
def test_counters_are_counters(most: int, scrapes: list[list[tuple[int, str, int]]]) -> None:
    """Whatever moves: no group falls, no more are named than allowed, and the sum is what labels counted."""
    shares = Shares(most)
    counted: dict[int, int] = {}
    before: dict[Group, list[int]] = {}
    for scrape in scrapes:
        now = {label: (name, more) for label, name, more in scrape}
        for label, (_, more) in now.items():
            counted[label] = counted.get(label, 0) + more
        shares.add((label, (name,), [counted[label]]) for label, (name, _) in now.items())
        sums = shares.sums()
        assert all(sums[group] >= count for group, count in before.items())
        assert len(sums.keys() - {("other",)}) <= most
        assert sum(count for (count,) in sums.values()) == sum(counted.values())
        before = sums
