"""Settings of streams: what is derived from others, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from eastwest.cli.config import load
from eastwest.cli.settings import Settings
from eastwest.collector.streamconfig import StreamsConfig
from eastwest.errors import ConfigError


@pytest.mark.parametrize(
    ("api", "streams"),
    [
        (None, "127.0.0.1:8471"),
        ("127.0.0.1:9000", "127.0.0.1:9001"),
        ("[fd00::1]:9000", "[fd00::1]:9001"),
        ("0.0.0.0:9000", "127.0.0.1:9001"),
        ("[::]:9000", "[::1]:9001"),
        ("127.0.0.1:65535", "127.0.0.1:8471"),
    ],
)
def test_beside_the_api(api: str | None, streams: str) -> None:
    """At the port behind its own, unless something is said."""
    assert load(Settings, None, listen=api).streams.listen == streams


def test_what_is_said_counts(tmp_path: Path) -> None:
    """Where the file says where, nothing is derived; files lie in the state directory."""
    file = tmp_path / "e.toml"
    file.write_text('[streams]\nlisten = "127.0.0.1:7"\n[[streams.relay]]\nmatch = "a*"\nto = "h:1"\n')
    settings = load(Settings, file, tmp_path / "state", "127.0.0.1:9000")
    assert settings.streams.listen == "127.0.0.1:7"
    assert settings.streams.path == tmp_path / "state" / "captures"
    assert [(relay.match, relay.to) for relay in settings.streams.relay] == [("a*", "h:1")]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"listen": "here:8471"}, "write ADDRESS:PORT"),
        ({"listen": "127.0.0.1:٣"}, "write ADDRESS:PORT"),
        ({"listen": "0.0.0.0:8471"}, "say in streams.advertise"),
        ({"advertise": "nowhere"}, "streams.advertise: 'nowhere' is not HOST:PORT"),
        ({"pcap_over_ip": "127.0.0.1"}, "streams.pcap_over_ip = '127.0.0.1'"),
        ({"tls_key": Path("/x")}, "set both, or neither"),
        ({"rotate_bytes": 10}, "streams.rotate_bytes = 10 is out of range"),
        ({"retention_days": 0.0}, "out of range"),
        ({"connections": 0}, "out of range"),
    ],
)
def test_refused(wrong: dict[str, Any], said: str) -> None:
    """Before anything starts, with what to do."""
    with pytest.raises(ConfigError) as refused:
        StreamsConfig(**wrong)
    assert said in str(refused.value)
