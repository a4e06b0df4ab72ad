"""A tap under `eastwest up`: with the privileges that its roles have, from the command line to a file."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import Workload
from tests.kernel import blocks
from tests.kernel.test_tap_segment import MADE, UNFINISHED
from tests.system.user_site import EASTWEST, Site, until


@pytest.mark.parametrize("more", [[], ["--segment"]])
def test_a_filtered_capture_ends_after_its_packets(
    site: Site, netns: Path, tmp_path: Path, more: list[str]
) -> None:
    """The probe compiles the filter, loads the tap, delivers; of two ports only one is in the file.

    As on the wire: what the sender left to its card, the checksum, is finished, through a relay device.
    """
    file = tmp_path / "copy.pcapng"
    with site.up(), Workload(netns) as one:
        until(lambda: any(row["name"] == one.name for row in site.json("labels")), "the workload")
        command = [
            *EASTWEST,
            "capture",
            f"name={one.name}",
            "-f",
            "udp port 2000",
            "-c",
            "50",
            *more,
            "-w",
            str(file),
        ]
        with subprocess.Popen(command, env=site.environment, stderr=subprocess.PIPE) as capture:

            def ended() -> bool:
                one.send(5, port=2000)
                one.send(5, port=2001)
                return capture.poll() is not None

            until(ended, "the capture's end")
            assert capture.stderr
            said = capture.stderr.read().decode()
        assert capture.returncode == 0, said
        (section,) = blocks.parse(file.read_bytes())
        assert len(section.packets) == 50
        assert {packet.data[36:38] for packet in section.packets} == {(2000).to_bytes(2, "big")}
        assert {packet.custom[2] for packet in section.packets} == {MADE if more else UNFINISHED}
        (interface,) = section.interfaces
        assert interface.name == one.port
        until(lambda: not site.json("taps"), "the end of its tap")
