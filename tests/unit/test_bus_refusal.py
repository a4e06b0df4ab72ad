"""What the bus says when it is full."""

import pytest
from nats.js.errors import APIError

from eastwest.bus.client import _refusal


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("publish 9 bytes on eastwest.flows.h", "the stream is full; it holds what is not stored yet"),
        ("write abc of EW_SUSPECT", "the bucket is full; take back what is declared"),
    ],
)
def test_full_is_said_of_what_is_full(what: str, said: str) -> None:
    """A bucket is not emptied by storing: its remedy is another than the stream's."""
    refused = _refusal(what, APIError(code=500, err_code=10077, description="maximum bytes exceeded"))
    assert str(refused).startswith(f"cannot {what}: {said}")
