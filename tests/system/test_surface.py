"""What the product shows adds up, end to end: labels to hooks, flows and losses to labels."""

import socket
from collections import Counter
from pathlib import Path

from eastwest.kernel.netns import inside
from tests.conftest import Workload
from tests.system.user_site import Site, until

FLOWS = 10_000


def test_with_64_flow_entries_10000_flows_lose_detail_and_nothing_else(
    site: Site, netns: Path, cgroup: Path
) -> None:
    """labels + unattributed = hooks; flows + flow_map_full = label; the ledger says so and balances."""
    settings = site.config.read_text().replace("interval_seconds = 0.2", "interval_seconds = 2.0")
    site.config.write_text(settings + "flow_entries = 64\n")
    with Workload(netns) as workload, site.up():
        until(lambda: any(row["name"] == workload.name for row in site.json("workloads")), "it is listed")
        with inside(workload.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for port in range(1, FLOWS + 1):
                s.sendto(bytes(72), ("10.1.0.2", port))
        (label,) = [row["label"] for row in site.json("labels") if row["name"] == workload.name]

        def settled() -> bool:
            (row,) = [row for row in site.json("ledger") if row["label"] == label]
            return bool(row["seen_packets"] == FLOWS and not row["pending_packets"])

        until(settled, "all are stored or lost")
        (account,) = [row for row in site.json("ledger") if row["label"] == label]
        flows = site.json("flows", "--label", f"label={label}", "--limit", "100000")
        assert account["balanced"]
        assert account["stored_packets"] == sum(row["packets"] for row in flows)
        assert account["lost"] == {"flow_map_full": FLOWS - account["stored_packets"]}
        assert 64 <= account["stored_packets"] < FLOWS
        totals: Counter[str] = Counter()
        for row in site.json("labels"):
            for field in ("ingress_packets", "ingress_bytes", "egress_packets", "egress_bytes"):
                totals[field] += row[field]
        (host,) = site.json("hosts")
        for field, total in totals.items():
            assert total == sum(hook[field] for hook in host["hooks"])
        assert (totals["egress_packets"], totals["egress_bytes"]) == (FLOWS, FLOWS * 100)
