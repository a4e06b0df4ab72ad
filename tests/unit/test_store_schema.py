"""The tables against the rows that fill them."""

import asyncio
import base64
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from eastwest.bus.client import Bus, BusConfig
from eastwest.errors import ConfigError, StoreError
from eastwest.meter.rows import FLOW_ROW, TOTAL_ROW
from eastwest.store.batch import Batch, block
from eastwest.store.binary import length
from eastwest.store.schema import FLOWS, ORIGIN, TOTALS
from eastwest.store.store import Store, StoreConfig

_SIZES = {
    "IPv6": 16,
    "UInt8": 1,
    "UInt16": 2,
    "UInt32": 4,
    "UInt64": 8,
    "DateTime64(9, 'UTC')": 8,
    "FixedString(16)": 16,
    "Enum8('ingress' = 0, 'egress' = 1)": 1,
    "Enum8('normal' = 0, 'suspect' = 1)": 1,
}


@pytest.mark.parametrize(
    ("columns", "row", "before"), [(FLOWS, FLOW_ROW, len(ORIGIN) + 1), (TOTALS, TOTAL_ROW, len(ORIGIN))]
)
def test_columns_follow_the_row(columns: dict[str, str], row: np.dtype, before: int) -> None:
    """Same names, same order, same size: field by field what the database reads is what the array holds."""
    assert tuple(columns)[before:] == row.names
    assert [_SIZES[kind] for kind in list(columns.values())[before:]] == [
        row[name].itemsize for name in row.names or ()
    ]
    assert row.itemsize == sum(row[name].itemsize for name in row.names or ())


def test_times_are_times_and_counters_are_not() -> None:
    times = {name for name, kind in (FLOWS | TOTALS).items() if kind.startswith("DateTime64")}
    assert times == {"start", "end", "first_seen", "last_seen"}
    assert {FLOWS[name] for name in ("packets", "bytes", "boot", "sequence")} == {"UInt64"}


def test_a_block_holds_every_column_with_its_origin() -> None:
    """Two batches of hosts with names of different length, byte by byte."""
    rows = np.zeros(2, FLOW_ROW)
    rows["label"] = 3, 4
    columns = {name: FLOWS[name] for name in ("host", "boot", "sequence", "received", "label")}
    document = block(columns, [Batch("h", 5, 6, "flows", rows), Batch("host", 7, 8, "flows", rows[1:])], 9)
    named = [bytes([len(text)]) + text.encode() for text in ("host", "String")]
    wanted = b"\x05\x03" + b"".join(named) + b"\x01h\x01h\x04host"
    for name, kind, size, values in (
        ("boot", "UInt64", 8, (5, 5, 7)),
        ("sequence", "UInt64", 8, (6, 6, 8)),
        ("received", "DateTime('UTC')", 4, (9, 9, 9)),
        ("label", "UInt32", 4, (3, 4, 4)),
    ):
        wanted += bytes([len(name)]) + name.encode() + bytes([len(kind)]) + kind.encode()
        wanted += b"".join(value.to_bytes(size, "little") for value in values)
    assert document == wanted


def test_a_length_of_more_than_seven_bits_takes_several_bytes() -> None:
    assert length(127) == b"\x7f"
    assert length(300) == b"\xac\x02"


def test_empty_batches_make_no_block() -> None:
    batches = [Batch("h", 1, 1, "flows", np.zeros(0, FLOW_ROW)), Batch("h", 1, 2, "workloads")]
    assert block(FLOWS, batches, 9) == b""


@pytest.mark.parametrize(
    "config", [StoreConfig(), StoreConfig(url="http://x", retention_days=0), StoreConfig(url="", path="/x")]
)
def test_impossible_configurations_are_refused(config: StoreConfig) -> None:
    with pytest.raises(ConfigError, match=r"store .*; set "):
        Store(config)


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@host/db", "http://us/er:hunter2@host", "http://host/?password=hunter2"]
)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    """The store's and the bus's: the password goes into a file."""
    for section, make in (
        ("store", lambda: Store(StoreConfig(url=url))),
        ("bus", lambda: Bus(BusConfig(url=url))),
    ):
        with pytest.raises(ConfigError, match=rf"^\[{section}\] url .*; .* password_file$") as refused:
            make()
        assert "hunter2" not in str(refused.value)


def test_user_and_password_of_a_server_are_sent_and_never_shown(tmp_path: Path) -> None:
    """A server of the test's own is asked with both in the header; its refusal is told without them."""
    asked: list[str] = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    async def scenario(config: StoreConfig) -> None:
        async with Store(config):
            pass

    (tmp_path / "password").write_text("hunter2\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        config = StoreConfig(url=url, user="ann", password_file=tmp_path / "password")
        with pytest.raises(StoreError) as refused:
            asyncio.run(scenario(config))
        server.shutdown()
        thread.join()
    assert "hunter2" not in str(refused.value)
    assert url in str(refused.value)
    assert set(asked) == {"Basic " + base64.b64encode(b"ann:hunter2").decode()}
