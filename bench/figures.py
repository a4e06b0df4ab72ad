"""What rounds of a measurement amount to: medians with their range, and intervals that say how sure that is.

Variants are compared within one run only, round by round in a random order, so that whatever drifts on the
machine meets all of them alike.
"""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_RESAMPLES = 10_000


def paired(rounds: int, variants: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure every variant once a round, each round in another order: name → a figure for each round."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    chance = random.Random()
    for _ in range(rounds):
        for name in chance.sample(list(variants), len(variants)):
            figures[name].append(variants[name]())
    return figures


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, by bootstrap."""
    data = np.asarray(values, float)
    picks = np.random.default_rng(1).integers(0, len(data), (_RESAMPLES, len(data)))
    low, high = np.percentile(np.median(data[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a - b for a, b in zip(one, other, strict=True)]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range."""
    middle = statistics.median(values)
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def sure(values: Sequence[float], digits: int = 3) -> str:
    """Median and its 95 % interval."""
    low, high = interval(values)
    return f"{statistics.median(values):,.{digits}f} (95 %: {low:,.{digits}f} to {high:,.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table as bench/RESULTS.md has it."""
    print("|" + "|".join(f" {cell} " for cell in head) + "|")
    print("|" + "---|" * len(head))
    for row in rows:
        print("|" + "|".join(f" {cell} " for cell in row) + "|")
    print(flush=True)
