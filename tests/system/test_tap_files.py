"""From the workload to the file: what a tap's files hold is what the workload sent, byte for byte."""

import shutil
import struct
from pathlib import Path

from tests.conftest import Workload, require
from tests.kernel import blocks
from tests.system.streams_site import packets
from tests.system.user_site import Site, until


def test_a_tap_becomes_files(site: Site, netns: Path) -> None:
    """Two taps of a workload, one with a filter; their files are whole when the taps have ended."""
    require(shutil.which("capinfos"), "needs capinfos: apt-get install wireshark-common")
    captures = site.state / "captures"
    with Workload(netns) as workload, site.up():
        until(
            lambda: any(row["name"] == workload.name for row in site.json("workloads")), "workload is listed"
        )
        who = f"name={workload.name}"
        for command in (("all", who, "--for", "10m"), ("some", who, "-f", "udp dst port 2001")):
            done = site.run("tap", "add", *command)
            assert done.returncode == 0, done.stderr

        def attached() -> bool:
            return all(tap["hosts"] and tap["hosts"][0]["points"] for tap in site.json("tap", "list"))

        until(attached, "both taps are at the port")
        workload.send(300, size=500)
        workload.send(200, size=60, port=2001)

        def delivered() -> bool:
            entries = {e["tap"]: e["delivered_packets"] for e in site.json("ledger", "--taps")}
            return entries == {"all": 500, "some": 200}

        until(delivered, "the collector has all")
        for tap in ("all", "some"):
            assert site.run("tap", "rm", tap).returncode == 0
        until(lambda: not any((captures / ".open").iterdir()), "the files are closed")
        files = {tap: list((captures / tap).glob("h1-*.pcapng")) for tap in ("all", "some")}
        assert {tap: packets(*found) for tap, found in files.items()} == {"all": 500, "some": 200}
        (section,) = blocks.parse(files["some"][0].read_bytes())
        assert [interface.name for interface in section.interfaces] == [workload.port]
        sent = {packet.data[14:16] + packet.data[36:38] + packet.data[42:] for packet in section.packets}
        assert sent == {b"\x45\x00" + struct.pack(">H", 2001) + bytes(60)}
