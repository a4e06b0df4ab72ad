"""`up`, what it leaves, and `down`: the real roles, in a network namespace and cgroup of their own."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from eastwest.errors import ConfigError
from eastwest.lab.state import STATE_DIR, labs, load
from tests.conftest import Workload, require
from tests.system.user_site import EASTWEST, SECONDS, Site, until

STOPPED = "eastwest: stopped; counting goes on in the kernel, `eastwest down` ends it"
PROBE_CAPABILITIES = 0xC0002830C7
"""CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF."""


def sent(site: Site, workload: Workload) -> int:
    """Packets that the workload sent, as /labels has them."""
    return sum(row["egress_packets"] for row in site.json("labels") if row["name"] == workload.name)


def facts(site: Site, workload: Workload) -> list[tuple[str, int]]:
    """Tenant and service ID of the workload, as /labels has them."""
    rows = site.json("labels")
    return [(row["tenant"], row["service_id"]) for row in rows if row["name"] == workload.name]


def test_a_day_of_up_and_down(site: Site, netns: Path) -> None:
    """Ready, counted to the packet, one at a time, ended in order, removed, purged."""
    with Workload(netns) as workload, site.up() as process:
        until(
            lambda: any(row["name"] == workload.name for row in site.json("workloads")), "workload is listed"
        )
        workload.send(40)
        until(lambda: sent(site, workload) == 40, "40 packets are stored")
        flows = site.json("flows", "--label", f"name={workload.name}")
        assert {(f["dst"], f["dst_port"], f["protocol"], f["direction"]) for f in flows} == {
            ("10.1.0.2", 2000, 17, "egress")
        }
        assert [sum(f[field] for f in flows) for field in ("packets", "bytes")] == [40, 4000]
        assert all(entry["balanced"] for entry in site.json("ledger"))
        assert [port["port"] for port in site.json("ports") if port["label"]] == [workload.port]
        assert [host["host"] for host in site.json("hosts")] == ["h1"]

        assert site.run("label", "set", workload.name, "tenant=red", "service_id=7").returncode == 0
        until(lambda: facts(site, workload) == [("red", 7)], "the facts are bound")

        roles = site.roles()
        assert set(roles) == {"nats-server", "server", "probe"}
        stopped = site.down()
        assert stopped == "stopped eastwest; removed its programs and counters from the kernel"
        assert process.wait(SECONDS) == 0
        assert site.roles() == {}
    assert site.down() == f"nothing to do: eastwest does not run on {site.state}"
    assert site.down("--purge") == f"deleted its state in {site.state}"
    assert not site.state.exists()


def test_killed_up_leaves_counting_that_the_next_adopts(site: Site, netns: Path) -> None:
    """SIGKILL: no process stays, the kernel counts on, and nothing is missing afterwards."""
    with Workload(netns) as workload:
        with site.up() as process:
            until(
                lambda: any(row["name"] == workload.name for row in site.json("workloads")),
                "workload is listed",
            )
            workload.send(10)
            until(lambda: sent(site, workload) == 10, "10 packets are stored")
            process.kill()
            process.wait()
        until(lambda: not site.roles(), "the children are gone")
        assert (site.state / "bpf").is_mount()
        workload.send(20)  # nobody is there but the kernel
        with site.up():
            until(lambda: sent(site, workload) == 30, "all 30 packets are stored")
            assert all(entry["balanced"] for entry in site.json("ledger"))
    assert "removed its programs" in site.down()
    assert not (site.state / "bpf").is_mount()


def test_roles_have_the_privileges_they_need(site: Site) -> None:
    """Server and nats-server none at all, the probe its eleven; a killed role comes back."""
    with site.up() as process:
        roles = site.roles()
        for name, allowed in (("nats-server", 0), ("server", 0), ("probe", PROBE_CAPABILITIES)):
            status = Path(f"/proc/{roles[name]}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert int(fields["CapEff"], 16) | int(fields["CapBnd"], 16) == allowed
            assert fields["NoNewPrivs"] == "1"
        before = site.json("hosts")[0]["started_at"]
        os.kill(roles["probe"], signal.SIGKILL)
        until(lambda: site.json("hosts")[0]["started_at"] != before, "a new probe reports")
        assert site.roles()["server"] == roles["server"]
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    errors = site.config.with_name("up.err").read_text().splitlines()
    assert errors == [
        f"eastwest: starting eastwest in {site.state} …",
        "eastwest: probe was ended by SIGKILL; starting it again in 0.5 s",
        STOPPED,
    ]


def test_second_up_and_used_port_are_refused(site: Site, tmp_path: Path) -> None:
    """One line each, exit 1, and the first is not disturbed; `--for` ends by itself."""
    with site.up("--for", "8") as process:
        second = site.run(*site.up_command()[3:])
        assert second.returncode == 1
        assert second.stderr == (
            f"eastwest: eastwest already runs on {site.state} (process {process.pid}); choose another "
            "--state-dir and --listen, or stop it with `eastwest down`\n"
        )
        other = ["--state-dir", str(tmp_path / "other"), "--listen", f"127.0.0.1:{site.port}"]
        third = site.run("up", *other)
        assert third.returncode == 1
        assert third.stderr == (
            f"eastwest: 127.0.0.1:{site.port} is in use; choose another with --listen ADDR:PORT\n"
        )
        assert not (tmp_path / "other" / "roles").exists()
        assert site.json("hosts")[0]["alive"]
        assert process.wait(SECONDS) == 0
    assert site.roles() == {}


def test_a_probe_alone(site: Site) -> None:
    """One per state directory, its files its own; `up` beside it is refused; `down` stops it, cleans up."""
    command = ["probe", "--state-dir", str(site.state), "--config", str(site.config)]
    log = site.config.with_name("probe.err")
    with log.open("w") as err, subprocess.Popen([*EASTWEST, *command], stderr=err) as probe:
        try:
            until((site.state / "probe.db").exists, "the probe's notes are there")
            modes = {path.name: path.stat().st_mode & 0o077 for path in site.state.glob("probe.*")}
            assert {"probe.db": 0, "probe.lock": 0}.items() <= modes.items()
            assert set(modes.values()) == {0}
            already = f"eastwest: a probe already runs on {site.state} (process {probe.pid}); "
            second = site.run(*command)
            assert second.returncode == 1
            stop = "stop it with `eastwest down`\n"
            assert second.stderr == f"{already}choose another --state-dir, or {stop}"
            up = site.run(*site.up_command()[3:])
            assert (up.returncode, up.stderr) == (1, f"{already}{stop}")
            stopped = site.down("--purge").split("; ")
            assert stopped[:2] == ["stopped the probe", "removed its programs and counters from the kernel"]
            assert probe.wait(SECONDS) == 0
        finally:
            probe.kill()
    assert not site.state.exists()


def test_what_is_not_there_is_refused_before_anything_starts(site: Site) -> None:
    """A namespace of the settings that does not exist: one line."""
    site.config.write_text('[probe]\nnetns = "/run/netns/nowhere"\n')
    done = site.run(*site.up_command()[3:])
    assert done.returncode == 1
    assert "netns = '/run/netns/nowhere'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (site.state / "roles").exists()


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 64 MiB: how much there is, and what to do."""
    pytest.importorskip("chdb", reason="pip install 'eastwest[server]'")
    from eastwest.cli.deploy import refuse_full

    refuse_full(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": (64 << 20) - 1}))
    with pytest.raises(ConfigError, match="only 63 MiB are free on its disk; free 64 MiB or more, or"):
        refuse_full(tmp_path)


def made_by(lab: str, pid: int) -> bool:
    state = load(STATE_DIR / lab)
    return state is not None and state.owner.pid == pid


def test_up_with_a_lab(site: Site) -> None:
    """The lab's workloads are metered when `up` is ready, and gone when it has ended."""
    require(shutil.which("ovs-vswitchd"), "needs Open vSwitch: apt-get install openvswitch-switch")
    site.config.write_text('[probe]\nhost = "h1"\n')
    with site.up("--lab", "--for", "3") as process:
        (lab,) = [name for name in labs(STATE_DIR) if made_by(name, process.pid)]
        listed = {row["name"] for row in site.json("labels")}
        assert {f"{lab}-{member}" for member in ("a1", "a2", "b1", "b2", "load", "web")} <= listed
        assert process.wait(SECONDS) == 0
    assert lab not in labs(STATE_DIR)
    assert not list(Path("/run/netns").glob(f"{lab}-*"))
    errors = site.config.with_name("up.err").read_text().splitlines()
    assert errors == [f"eastwest: starting eastwest in {site.state} …", STOPPED]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "8470"], "8470"),
        (["--listen", "0.0.0.0:18470"], "no token is set"),
        (["--listen", "[::1]:x"], "not ADDR:PORT"),
    ],
)
def test_addresses_that_cannot_be(root: None, tmp_path: Path, arguments: list[str], said: str) -> None:
    """Refused before anything starts, on one line."""
    command = [*EASTWEST, "up", "--state-dir", str(tmp_path / "state"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "state" / "nats").exists()


@pytest.mark.parametrize("verb", ["up", "down"])
def test_without_root(root: None, verb: str) -> None:
    """The lack is named with its remedy."""
    require(shutil.which("setpriv"), "needs setpriv: apt-get install util-linux")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *EASTWEST, verb]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    require("Permission denied" not in done.stderr, "the environment must be readable to every user")
    assert done.returncode == 1
    assert done.stderr.endswith("needs root; run it with sudo\n")
    assert done.stderr.count("\n") == 1
