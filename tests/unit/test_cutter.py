"""What the cutter finds in many rows without looking at one."""

import numpy as np

from eastwest.probe.cutter import _distinct, _runs


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
