"""An API that answers what a test has put down, over real HTTP on the loopback."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Stub:
    """`answers`: path below /api/v1/ → document, or (status, document), or a function that gives one.

    `asked`: what came.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, str, dict[str, list[str]], Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@contextmanager
def serving() -> Iterator[Stub]:
    """A stub that listens until left."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path.removeprefix("/api/v1/"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stub.asked.append((self.command, path, parse_qs(parts.query), json.loads(body or "null")))
            stub.headers.append(dict(self.headers))
            found = stub.answers.get(path, (404, {"error": f"no {path}", "remedy": "look elsewhere"}))
            found = found() if callable(found) else found
            status, document = found if isinstance(found, tuple) else (200, found)
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def label(number: int, name: str, **fields: Any) -> dict[str, Any]:
    """One entry of /labels."""
    counters = {
        f"{suspect}{way}_{unit}": 0
        for suspect in ("", "suspect_")
        for way in ("ingress", "egress")
        for unit in ("packets", "bytes")
    }
    facts = {"tenant": "", "network": "", "service": "", "service_id": 0, "host": "h1", "ports": []}
    times = {"first_seen": "2024-01-01T00:00:00.123456789Z", "last_seen": None}
    return {
        "label": number, "name": name, "kind": "netns", **facts, **counters, **times, "enforced_drops": 0,
    } | fields  # fmt: skip


def host(**fields: Any) -> dict[str, Any]:
    """One entry of /hosts."""
    programs = [
        {"program": "port_ingress", "runs": 10, "ns_per_packet": 95.4},
        {"program": "port_egress", "runs": 30, "ns_per_packet": 99.4},
        {"program": "cgroup_ingress", "runs": 0, "ns_per_packet": 0.0},
    ]
    hook = {"ingress_packets": 1000, "ingress_bytes": 1, "egress_packets": 500, "egress_bytes": 1}
    return {
        "host": "h1",
        "alive": True,
        "age_seconds": 1.2,
        "time": "2024-01-01T00:00:00Z",
        "version": "0.1.0",
        "hooks": [{"hook": "port"} | hook],
        "cost": {"cpu_percent": 1.25, "memory_bytes": 70_000_000, "programs": programs},
        "problems": [],
    } | fields


def flow(**fields: Any) -> dict[str, Any]:
    """One entry of /flows."""
    return {
        "start": "2024-01-01T00:00:00Z",
        "end": "2024-01-01T00:00:01Z",
        "host": "h1",
        "port": "tap0",
        "label": 7,
        "class": "normal",
        "direction": "egress",
        "src": "10.0.0.1",
        "dst": "10.0.0.2",
        "src_port": 4000,
        "dst_port": 80,
        "protocol": 6,
        "packets": 10,
        "bytes": 1500,
        "tcp_flags": 0x12,
    } | fields


def entry(number: int, seen: int, balanced: bool = True, **lost: int) -> dict[str, Any]:
    """One entry of /ledger."""
    return {
        "label": number,
        "seen_packets": seen,
        "stored_packets": seen - sum(lost.values()),
        "pending_packets": 0,
        "lost": lost,
        "balanced": balanced,
    }
