"""From a word on the command line to an alert with the packets that made it, through every role."""

import base64
from pathlib import Path

from tests.conftest import Workload
from tests.system.user_site import Site, until

PACKETS, PAYLOAD = 30, 72


def test_a_suspect_prefix_raises_one_alert_with_flow_and_packets(site: Site, netns: Path) -> None:
    """It names the workload, shows the flow behind it, and a few of its packets byte for byte."""
    with site.up(), Workload(netns) as workload:
        until(lambda: workload.name in [row["name"] for row in site.json("workloads")], "it is known")
        workload.send(PACKETS)
        assert site.run("suspect", "add", "10.1.0.2/31", "--why", "a test").returncode == 0
        until(lambda: "10.1.0.2/31" in site.run("suspect", "list", "--json").stdout, "it is in effect")
        workload.send(PACKETS, size=PAYLOAD, port=2001)
        until(lambda: [a for a in site.json("alerts") if a["flows"]], "an alert")
        (alert,) = site.json("alerts")
        assert (alert["kind"], alert["state"], alert["name"]) == ("suspect", "firing", workload.name)
        (label,) = [row for row in site.json("workloads") if row["name"] == workload.name]
        assert (alert["label"], alert["subject"]) == (label["label"], "10.1.0.2/31")
        # A cut may fall between two packets, and an evaluation between two cuts.
        assert {(f["dst"], f["dst_port"], f["class"]) for f in alert["flows"]} == {
            ("10.1.0.2", 2001, "suspect")
        }
        until(lambda: suspect_flows(site, workload) == PACKETS, "all of them are stored")
        assert 1 <= len(alert["evidence"]) < PACKETS
        for packet in alert["evidence"]:
            seen = base64.b64decode(packet["packet"])
            assert packet["length"] == len(seen) == 28 + PAYLOAD
            assert (seen[0], seen[9], seen[12:16]) == (0x45, 17, bytes((10, 1, 0, 1)))
            assert seen[28:] == bytes(PAYLOAD)
        (label,) = [row for row in site.json("labels") if row["name"] == workload.name]
        assert (label["egress_packets"], label["suspect_egress_packets"]) == (2 * PACKETS, PACKETS)


def suspect_flows(site: Site, workload: Workload) -> int:
    """Packets in the workload's suspect flow rows."""
    rows = site.json("flows", "--label", f"name={workload.name}", "--since", "1h")
    return sum(row["packets"] for row in rows if row["class"] == "suspect")
