"""What every test may use."""

import os

import pytest


def require(condition: object, remedy: str) -> None:
    """Skip the test unless `condition`; where everything must run (EASTWEST_REQUIRE_ALL=1), fail."""
    if condition:
        return
    if os.environ.get("EASTWEST_REQUIRE_ALL") == "1":
        pytest.fail(remedy)
    pytest.skip(remedy)
