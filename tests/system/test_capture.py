"""`capture` with everything that `up` starts: exact against the sender, whatever ends it; nothing stays."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import Workload, require
from tests.kernel.blocks import parse
from tests.system.capturing import PORT, Group, capturing, numbers, send, writing
from tests.system.user_site import EASTWEST, SECONDS, Site, until


def known(site: Site, name: str) -> None:
    until(lambda: name in [row["name"] for row in site.json("workloads")], f"{name} is known")


def nothing_ordered(site: Site) -> None:
    assert site.json("taps") == []


def test_a_port_is_captured_to_the_packet(site: Site, netns: Path) -> None:
    """By a filter; Ctrl-C ends it with exit 0 and a summary that accounts for every packet."""
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        with capturing(site, f"name={workload.name}", "-f", f"udp port {PORT}") as capture:
            capture.ready()
            send(workload, range(500))
            send(workload, range(40), port=9)
            capture.holds(500)
            assert capture.end() == 0
            assert numbers(capture.packets(), 14) == list(range(500))
            assert {packet.original for packet in capture.packets()} == {114}
            assert capture.said[-3].startswith("eastwest: 500 packets written in ")
            assert ": 57.0 kB on the wire, " in capture.said[-3]
            assert capture.said[-2:] == [
                "eastwest: 500 packets matched = 500 written",
                "eastwest: 40 not matched by filter or direction",
            ]
        nothing_ordered(site)
        (account,) = site.json("ledger", "--taps")
        assert (account["seen_packets"], account["delivered_packets"], account["lost"]) == (500, 500, {})
        assert account["balanced"]


def test_a_group_on_the_hosts_network_is_captured_to_the_packet(
    site: Site, netns: Path, cgroup: Path
) -> None:
    """Both directions of what it says to itself over lo, as raw IP; through a pipe, ended by SIGTERM."""
    with site.up(), Group(netns, cgroup / "web.scope") as group:
        known(site, "web")
        with capturing(site, "name=web", to="stdout") as capture:
            capture.ready()
            group.send(300)
            capture.holds(600)
            assert capture.end(signal.SIGTERM) == 0
            packets = capture.packets()
        for direction in (1, 2):  # inbound, outbound
            assert numbers([p for p in packets if p.flags & 3 == direction], 0) == list(range(300))
        assert capture.said[-1] == "eastwest: 600 packets matched = 600 written"
        nothing_ordered(site)


@contextmanager
def shell(site: Site, words: str) -> Iterator[subprocess.Popen[str]]:
    """A command line as its user writes it, ended with all that it started."""
    process = subprocess.Popen(
        ["bash", "-c", words],
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_tshark_reads_n_packets_from_a_pipe(site: Site, netns: Path) -> None:
    """`capture -c N | tshark -r -`: exactly N, then both end by themselves."""
    require(shutil.which("tshark"), "needs tshark: apt-get install tshark")
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        errors = site.config.with_name("pipe.err")
        errors.touch()
        tshark = "tshark -r - -T fields -e udp.dstport -e frame.interface_name"
        words = f"{' '.join(EASTWEST)} capture name={workload.name} -c 7 2>{errors} | {tshark}"
        with shell(site, f"set -o pipefail; {words}") as pipe:
            until(lambda: "capturing: " in errors.read_text(), "it captures")
            send(workload, range(20))
            out, _ = pipe.communicate(timeout=SECONDS)
            assert pipe.returncode == 0, errors.read_text()
        assert out.splitlines() == [f"{PORT}\t{workload.port}"] * 7
        (account,) = site.json("ledger", "--taps")
        matched = account["seen_packets"]
        beyond = f" + {matched - 7} beyond what was asked for" if matched > 7 else ""
        assert f"{matched} packets matched = 7 written{beyond}\n" in errors.read_text()


def test_limits_in_bytes_and_time(site: Site, netns: Path) -> None:
    """Never a byte more, and whole blocks; --for ends it without a packet, with exit 0."""
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        with capturing(site, f"name={workload.name}", "--max-bytes", "20k") as capture:
            capture.ready()
            send(workload, range(200))
            assert capture.process.wait(SECONDS) == 0
            size = capture.output.stat().st_size
            assert 19_700 < size <= 20_000
            packets = capture.packets()
            assert numbers(packets, 14) == list(range(len(packets)))
        done = site.run("capture", "name=nobody", "--for", "1", "-w", str(capture.output))
        assert done.returncode == 0
        lines = done.stderr.splitlines()
        assert lines[0] == "eastwest: no workload matches 'name=nobody' now; waiting for one to come"
        assert lines[1].startswith(f"eastwest: overwriting {capture.output} (")
        assert lines[2].startswith("eastwest: 0 packets written in ")
        nothing_ordered(site)


def test_a_capture_follows_workloads_as_they_come(site: Site, netns: Path) -> None:
    """Begun before there is one; each brings its own interface into the one stream."""
    with site.up(), capturing(site, "name=ew-*") as capture:
        until(lambda: any("waiting for one to come" in line for line in capture.said), "it waits")
        total = 0
        for count in (30, 50):
            with Workload(netns) as workload:
                tapped(site, workload)
                send(workload, range(count))
                total += count
                capture.holds(total)
        assert capture.end() == 0
        assert numbers(capture.packets(), 14) == [*range(30), *range(50)]
        assert capture.said[-1] == "eastwest: 80 packets matched = 80 written"


def tapped(site: Site, workload: Workload) -> None:
    """Wait until a capture takes a workload's packets."""
    known(site, workload.name)

    def points() -> int:
        return sum(host["points"] for tap in site.json("taps") for host in tap["hosts"])

    until(lambda: points() == 1, f"{workload.name} is tapped")


def test_what_is_killed_ends_in_seconds(site: Site, netns: Path) -> None:
    """SIGKILL of the command: its order expires, and nothing is copied any more."""
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        with capturing(site, f"name={workload.name}") as capture:
            capture.ready()
            capture.end(signal.SIGKILL)
            assert len(site.json("taps")) == 1
            until(lambda: site.json("taps") == [], "the order is gone")
        until(lambda: site.json("ledger", "--taps")[0]["pending_packets"] == 0, "nothing is pending")


def test_a_filter_that_does_not_fit_is_said(site: Site, netns: Path, cgroup: Path) -> None:
    """What libpcap refuses, at once; what only the place refuses, by the place; the file is left alone."""
    with site.up(), Group(netns, cgroup / "web.scope"):
        known(site, "web")
        file = site.config.with_name("kept")
        file.write_text("kept")
        done = site.run("capture", "name=web", "-f", "tcp prot 80", "-w", str(file))
        assert done.returncode == 1
        assert done.stderr.startswith("eastwest: libpcap refuses the filter: ")
        assert done.stderr.count("\n") == 1
        assert file.read_text() == "kept"
        done = site.run("capture", "name=web", "-f", "vlan 7", "-w", str(file))
        assert done.returncode == 1
        assert "h1: " in done.stderr
        assert "libpcap refuses the filter: no VLAN support for Raw IP" in done.stderr
        assert "nothing can be copied\n" in done.stderr
        nothing_ordered(site)


@pytest.mark.parametrize("reader", ["head -c 20", "true"])
def test_a_reader_that_goes_ends_it(site: Site, netns: Path, reader: str) -> None:
    """With packets or without: exit 1, and the order is gone."""
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        errors = site.config.with_name("pipe.err")
        errors.touch()
        words = f"{' '.join(EASTWEST)} capture name={workload.name} 2>{errors} | {reader} >/dev/null"
        with shell(site, f"{words}; exit ${{PIPESTATUS[0]}}") as pipe:
            assert pipe.wait(SECONDS) == 1
        assert "nobody reads the output any more\n" in errors.read_text()
        nothing_ordered(site)


def test_a_reader_that_waits_keeps_nobody_from_ending(site: Site, netns: Path) -> None:
    """It is paused, and takes no more than its pipe holds: Ctrl-C ends it, and every packet is named."""
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        errors = site.config.with_name("pipe.err")
        errors.touch()
        words = f"{' '.join(EASTWEST)} capture name={workload.name} 2>{errors} | sleep {SECONDS:.0f}"
        with shell(site, f"echo $$; {words}") as pipe:
            until(lambda: "capturing: " in errors.read_text(), "it captures")
            send(workload, range(5000))
            until(lambda: sum(tap["delivered"] for tap in site.json("taps")) == 5000, "all are delivered")
            (capture,) = children(pipe.pid, "capture")
            os.kill(capture, signal.SIGINT)
            until(lambda: "packets matched" in errors.read_text(), "it has ended")
        (last,) = errors.read_text().splitlines()[-1:]
        terms = r"([0-9,]+) written \+ ([0-9,]+) not taken by the reader of the output"
        found = re.fullmatch(f"eastwest: 5,000 packets matched = {terms}", last)
        assert found, last
        assert sum(int(number.replace(",", "")) for number in found.groups()) == 5000


def children(parent: int, verb: str) -> list[int]:
    """Processes that a shell started, by the verb of eastwest that they run."""
    words = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in words if f"\0{verb}\0" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_a_server_that_is_killed_ends_it_with_what_came(site: Site, netns: Path) -> None:
    """SIGKILL of the server: exit 1, one line that says so; the file is whole and has all that came."""
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        with capturing(site, f"name={workload.name}") as capture:
            capture.ready()
            send(workload, range(100))
            capture.holds(100)
            os.kill(site.roles()["server"], signal.SIGKILL)
            assert capture.process.wait(SECONDS) == 1
            assert numbers(capture.packets(), 14) == list(range(100))
            assert sum("no eastwest server at " in line for line in capture.said) == 1
            assert not any("Traceback" in line for line in capture.said)


def test_wireshark_lists_workloads_and_captures_them(site: Site, netns: Path) -> None:
    """By extcap: tshark finds them by name, with its own filter and count; when it ends, so does the tap."""
    require(shutil.which("tshark"), "needs tshark: apt-get install tshark")
    folders = subprocess.run(["tshark", "-G", "folders"], capture_output=True, text=True, check=True).stdout
    place = re.search(r"^(?:Global )?extcap path:\s+(/.+)$", folders, re.MULTILINE | re.IGNORECASE)
    require(place and Path(place[1]).is_dir(), "needs Wireshark's extcap directory: apt-get install tshark")
    assert place
    ours = site.config.with_name("extcap")
    assert site.run("extcap", "--install", "--directory", str(ours)).returncode == 0

    def tshark(*arguments: str) -> subprocess.Popen[str]:
        # As root, tshark knows one directory only: in a mount namespace it is ours.
        mounted = f'mount --bind {ours} {place[1]} && exec tshark "$@"'
        return subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", mounted, "tshark", *arguments],
            env=site.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        listed, _ = tshark("-D").communicate(timeout=SECONDS)
        assert f" eastwest-{workload.name} (eastwest: {workload.name} (host h1))\n" in listed
        fields = ("-T", "fields", "-e", "udp.dstport", "-e", "frame.interface_name")
        setting = re.sub(r"[^a-zA-Z0-9_]", "_", f"eastwest-{workload.name}")
        option = f"extcap.{setting}.direction:egress"
        interface = ("-i", f"eastwest-{workload.name}", "-o", option)
        reading = tshark(*interface, "-f", f"udp port {PORT}", "-c", "5", *fields)
        tapped(site, workload)
        assert site.json("taps")[0]["direction"] == "egress"
        send(workload, range(3), port=9)
        send(workload, range(5))
        out, err = reading.communicate(timeout=SECONDS)
        assert out.splitlines() == [f"{PORT}\t{workload.port}"] * 5, err
        until(lambda: site.json("taps") == [], "nothing is ordered any more")


def test_a_standing_order_keeps_files_and_is_read_over_tcp(site: Site, netns: Path) -> None:
    """`tap add`: what came is in a file, and at its pcap-over-IP address for tshark, to the packet."""
    require(shutil.which("tshark"), "needs tshark: apt-get install tshark")
    site.config.write_text(site.config.read_text() + '[streams]\npcap_over_ip = "127.0.0.1:0"\n')
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        assert site.run("tap", "add", "web", f"name={workload.name}", "--for", "forever").returncode == 0
        tapped(site, workload)
        address = until(lambda: site.json("taps")[0]["pcap_over_ip"], "it can be read")
        fields = ("-T", "fields", "-e", "udp.dstport")
        with subprocess.Popen(
            ["tshark", "-i", f"TCP@{address}", "-c", "40", *fields],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as reading:  # fmt: skip
            port = int(address.rpartition(":")[2])
            until(lambda: connected(port), "it reads")
            send(workload, range(40))
            out, err = reading.communicate(timeout=SECONDS)
            assert out.splitlines() == [str(PORT)] * 40, err
        until(lambda: site.json("taps")[0]["delivered"] == 40, "all are delivered")
        assert site.run("tap", "rm", "web").stdout == "tap web is removed\n"
        (account,) = site.json("ledger", "--taps")
        assert (account["seen_packets"], account["delivered_packets"], account["balanced"]) == (40, 40, True)
        (file,) = (site.state / "captures" / "web").glob("h1-*.pcapng")
        packets = [packet for section in parse(file.read_bytes()) for packet in section.packets]
        assert numbers(packets, 14) == list(range(40))


def test_a_standing_tap_is_read_by_whoever_asks(site: Site, netns: Path) -> None:
    """By two at once, each to the packet; the tap goes on when one ends, and ends the other when it ends."""
    with Workload(netns) as workload, site.up():
        known(site, workload.name)
        assert site.run("tap", "add", "web", f"name={workload.name}").returncode == 0
        tapped(site, workload)
        send(workload, range(20))
        with writing(site, "tap", "read", "web", name="one") as one:
            one.reads()
            send(workload, range(20, 320))
            one.holds(300)
            with writing(site, "tap", "read", "web", to="stdout", name="other") as other:
                other.reads()
                send(workload, range(320, 420))
                one.holds(400)
                other.holds(100)
                assert one.end() == 0
                assert site.json("taps")[0]["hosts"][0]["connected"]
                send(workload, range(420, 430))
                other.holds(110)
                assert site.run("tap", "rm", "web").returncode == 0
                assert other.process.wait(SECONDS) == 0
                assert numbers(other.packets(), 14) == list(range(320, 430))
                assert other.said[-1].startswith("eastwest: 110 packets written in ")
            assert numbers(one.packets(), 14) == list(range(20, 420))
            assert one.said[-1].startswith("eastwest: 400 packets written in ")
        done = site.run("tap", "read", "web", "-w", str(one.output))
        assert (done.returncode, done.stderr) == (
            1,
            "eastwest: there is no tap 'web'; see: eastwest tap list\n",
        )
        assert numbers(one.packets(), 14) == list(range(20, 420))


def connected(port: int) -> bool:
    """Whether somebody is connected to this port of the loopback (state 01 in /proc/net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_a_capture_does_not_feed_on_itself(tmp_path: Path, cgroup: Path) -> None:
    """Its own packets from the server are those of a workload that it captures: not one is copied."""
    site = Site(tmp_path, Path("/proc/self/ns/net"), cgroup)
    scope = cgroup / "own.scope"
    scope.mkdir()
    errors = site.config.with_name("capture.err")
    errors.touch()
    words = f"{' '.join(EASTWEST)} capture name=own -w {tmp_path}/own.pcapng 2>{errors}"
    try:
        with site.up():
            known(site, "own")
            with shell(site, f"echo $$ >{scope}/cgroup.procs; exec {words}") as capture:
                until(lambda: "capturing: " in errors.read_text(), "it captures")
                until(lambda: site.json("taps")[0]["hosts"][0]["own"] > 50, "it asks how it goes")
                capture.send_signal(signal.SIGINT)
                assert capture.wait(SECONDS) == 0
        assert errors.read_text().splitlines()[-1] == "eastwest: 0 packets matched"
    finally:
        site.run("down", "--purge", "--state-dir", str(site.state))
