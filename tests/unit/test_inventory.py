"""Names as anybody may have made them."""

import os

import pytest

from eastwest.inventory.model import readable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("web-1", "web-1"),
        ("größe", "größe"),
        (b"\xff.scope", "\\xff.scope"),
        (os.fsdecode(b"\xff.scope"), "\\xff.scope"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("half of a pair \ud800", "half of a pair \\ud800"),
    ],
)
def test_a_name_is_fit_for_a_database_and_a_terminal(name: str | bytes, shown: str) -> None:
    assert readable(name) == shown
