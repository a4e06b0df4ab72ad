"""How alerts leave: to a real HTTP server and a real socket, with nothing in them that could do harm."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eastwest.errors import ConfigError
from eastwest.watch.alert import Alert
from eastwest.watch.config import AlertsConfig, DetectConfig
from eastwest.watch.document import document
from eastwest.watch.outputs import Output, Undelivered
from eastwest.watch.syslog import Syslog, format_message, parse
from eastwest.watch.webhook import Webhook, header

ALERT = document(
    Alert(
        id="ab12", kind="silence", watch="quiet", subject="", state="firing", severity="critical", label=7,
        name='a"]\n\x1b[31m\\x', tenant="red", host="h1", figure=61.5, threshold=0.0, unit="seconds",
        text="line\nfeed", first_seen=1_700_000_000_123_456_789, last_seen=1_700_000_001_123_456_789,
    )
)  # fmt: skip


class Receiver:
    """`statuses`: what it answers, one after the other, then 204."""

    def __init__(self) -> None:
        self.url = ""
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], Any]] = []


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A real HTTP server on the loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.received.append((dict(self.headers), body))
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook?key=s3cret"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def told(output: Output, *counts: int) -> None:
    """Until so many are sent and given up."""
    async with asyncio.timeout(60):
        while (output.sent, output.dropped["gave_up"]) != counts:
            await asyncio.sleep(0.01)


def test_webhook_posts_the_alert_with_its_header_and_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a 500 and a 429 it is there, once; the secret of header and address is in no log."""
    secret = tmp_path / "header"
    secret.write_text("Authorization: Bearer t0psecret\n")

    async def scenario() -> None:
        with receiving() as receiver:
            receiver.statuses = [500, 429]
            way = Webhook(receiver.url, secret, 10)
            async with Output(way, queue=10, per_minute=10, attempts=5) as output:
                output.offer(ALERT)
                await told(output, 1, 0)
                assert output.problem is None
                assert [body for _, body in receiver.received] == [ALERT] * 3
                assert {h["Authorization"] for h, _ in receiver.received} == {"Bearer t0psecret"}
                receiver.statuses = [404]
                output.offer(ALERT)
                await told(output, 1, 1)
                assert len(receiver.received) == 4  # what is refused is not said again
                assert output.problem == "webhook: answered with 404; notifications dropped: gave_up 1"

    asyncio.run(scenario())
    assert "s3cret" not in caplog.text
    assert "t0psecret" not in caplog.text


def test_nobody_listens() -> None:
    """It is given up after its attempts, counted and said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

    async def scenario() -> None:
        async with Output(Webhook(url, None, 10), queue=10, per_minute=10, attempts=2) as output:
            output.offer(ALERT)
            await told(output, 0, 1)
            assert output.problem == "webhook: no answer (ConnectError); notifications dropped: gave_up 1"

    asyncio.run(scenario())


class Stuck:
    """A way on which nothing ever gets through."""

    name = "stuck"

    async def send(self, alert: object) -> None:
        await asyncio.Event().wait()


class Broken:
    """A way that refuses everything."""

    name = "broken"

    async def send(self, alert: object) -> None:
        raise Undelivered("no", again=False)


class Faulty:
    """A way that fails once in a manner that nobody thought of."""

    name = "faulty"

    def __init__(self) -> None:
        self.calls = 0

    async def send(self, alert: object) -> None:
        self.calls += 1
        if self.calls == 1:
            raise UnicodeError("label too long")


def test_an_unexpected_error_does_not_end_an_output() -> None:
    """It is counted and named, not tried again; the next notification goes out."""

    async def scenario() -> None:
        async with Output(Faulty(), queue=10, per_minute=10, attempts=5) as output:
            output.offer(ALERT)
            await told(output, 0, 1)
            assert output.problem == "faulty: cannot send (UnicodeError); notifications dropped: gave_up 1"
            output.offer(ALERT)
            await told(output, 1, 1)

    asyncio.run(scenario())


def test_queue_and_rate_are_bounded() -> None:
    """One is on its way, two wait, the fourth finds no room; and no more than five in a minute."""

    async def scenario() -> None:
        async with Output(Stuck(), queue=2, per_minute=100, attempts=1) as output:
            assert output.offer(ALERT)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert [output.offer(ALERT) for _ in range(3)] == [True, True, False]
        async with Output(Broken(), queue=10, per_minute=5, attempts=1) as output:
            assert [output.offer(ALERT) for _ in range(9)] == [True] * 5 + [False] * 4
            await told(output, 0, 5)
            assert output.problem == "broken: no; notifications dropped: gave_up 5"

    asyncio.run(scenario())


def test_what_was_dropped_is_forgotten_after_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health does not stay bad for ever. The clock is moved: nobody can wait for so long."""

    async def scenario() -> None:
        async with Output(Broken(), queue=10, per_minute=5, attempts=1) as output:
            output.offer(ALERT)
            await told(output, 0, 1)
            assert output.problem is not None
            now = time.monotonic()
            monkeypatch.setattr(time, "monotonic", lambda: now + 3601)
            assert output.problem is None
            monkeypatch.undo()

    asyncio.run(scenario())


def test_syslog_message_is_rfc_5424_and_harmless() -> None:
    """Priority local0.crit, six digits of a second, quotes and brackets escaped, no control character."""
    message = format_message(ALERT, 16, "server1").decode()
    head = "<130>1 2023-11-14T22:13:21.123456Z server1 eastwest - silence [alert@32473 "
    assert message.startswith(head)
    assert r'name="a\"\]#012#033[31m\\x"' in message
    assert message.endswith("] \ufefffiring: line#012feed")
    assert message.replace("\ufeff", "").isprintable()
    values = re.findall(r'(\w+)="((?:[^"\\\]]|\\.)*)"', message)
    assert dict(values) | {"name": ""} == {
        "id": "ab12", "kind": "silence", "state": "firing", "severity": "critical", "watch": "quiet",
        "subject": "", "label": "7", "name": "", "tenant": "red", "network": "", "service": "", "host": "h1",
        "figure": "61.5", "threshold": "0.0", "unit": "seconds",
    }  # fmt: skip
    over = ALERT | {"state": "resolved", "resolved_at": "2023-11-14T22:14:00.000000001Z"}
    assert format_message(over, 16, "-").startswith(b"<133>1 2023-11-14T22:14:00.000000Z - eastwest")
    long = format_message(ALERT | {"text": "ü" * 5000, "name": "n" * 5000}, 16, "h")
    assert len(long) <= 2048
    long.decode()
    texts = ("subject", "name", "tenant", "network", "service", "host", "watch", "id", "unit")
    for nasty in ('"', "]", "\n", "ü", "\U0001f600", "x"):
        worst = ALERT | dict.fromkeys(texts, nasty * 5000) | {"figure": 1e300, "threshold": 1e300}
        message = format_message(worst | {"text": "t" * 5000}, 16, "h" * 255).decode()
        values = re.findall(r' (\w+)="((?:[^"\\\]]|\\.)*)"', message)
        assert [name for name, _ in values][-1] == "unit"
        assert {len(value.encode()) for name, value in values if name in texts} == {96}
        assert '"] \ufefffiring: ttt' in message


@pytest.mark.parametrize("family", ["udp", "unix"])
def test_syslog_arrives_at_a_real_socket(tmp_path: Path, family: str) -> None:
    """Byte for byte; where nobody is, it is tried again and said."""

    async def scenario() -> None:
        kind = socket.AF_INET if family == "udp" else socket.AF_UNIX
        with socket.socket(kind, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0) if family == "udp" else str(tmp_path / "log"))
            receiver.settimeout(60)
            where = f"127.0.0.1:{receiver.getsockname()[1]}" if family == "udp" else f"/{tmp_path}/log"
            way = Syslog(f"{family}://{where}".replace("////", "///"), 16)
            async with Output(way, queue=10, per_minute=10, attempts=1) as output:
                output.offer(ALERT)
                await told(output, 1, 0)
            assert receiver.recv(4096) == format_message(ALERT, 16, way._host)
        if family == "unix":
            (tmp_path / "log").unlink()
            async with Output(way, queue=10, per_minute=10, attempts=1) as output:
                output.offer(ALERT)
                await told(output, 0, 1)
                assert output.problem is not None
                assert "cannot send (No such file or directory)" in output.problem

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "tcp://h:1",
        "udp://",
        "udp://h:x",
        "unix://log",
        "unix:log",
        "unix:///a\0b",
        "udp://log..example.com:514",
        "udp://" + "a" * 64 + ".example.com",
        "udp://a b:514",
    ],
)
def test_wrong_syslog_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="write udp://HOST:514 or unix:///dev/log"):
        parse(address)


@pytest.mark.parametrize(
    "address",
    [
        "", "ftp://x", "hooks", "http://", "https://hooks:port/x", "https://hooks/\nx", "https://hooks:70000/",
        "https://log..example.com/", "https://" + "a" * 64 + ".example.com/", "https://a b/",
    ],
)  # fmt: skip
def test_wrong_webhook_addresses_are_refused(address: str) -> None:
    """At the start, not when somebody is to be told; the address may hold a secret and is not shown."""
    with pytest.raises(ConfigError) as caught:
        Webhook(address, None, 10)
    assert str(caught.value) == "webhook_url of [alerts] is no address; write http://… or https://…"


@pytest.mark.parametrize("text", ["", "no header", "Bad Name: x", "A: b\nC: d", "Ä: x"])
def test_a_header_file_without_a_header_is_refused(tmp_path: Path, text: str) -> None:
    """And its content is not shown."""
    file = tmp_path / "header"
    file.write_text(text)
    with pytest.raises(ConfigError, match="holds no header"):
        header(file)
    with pytest.raises(ConfigError, match="cannot read the webhook's header file"):
        header(tmp_path / "absent")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (AlertsConfig, {"interval_seconds": 0}), (AlertsConfig, {"attempts": 0}),
        (AlertsConfig, {"syslog_facility": 24}), (AlertsConfig, {"per_minute": 0}),
        (DetectConfig, {"window_seconds": 0}), (DetectConfig, {"port_scan_ports": 70_000}),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(kind: type[msgspec.Struct], fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        msgspec.convert(fields, kind)
