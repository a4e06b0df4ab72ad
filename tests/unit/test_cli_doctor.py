"""`doctor` on machines made of files."""

import json
from pathlib import Path

import pytest

from eastwest import cli
from eastwest.cli import blindspots, checks, doctor
from eastwest.cli.machine import Check, Machine

BTF = "sys/kernel/btf/vmlinux"


def machine(root: Path, **files: str) -> Machine:
    """A machine with these files; `/` in a path is written `__`."""
    for name, content in files.items():
        put(root, name.replace("__", "/"), content)
    return Machine(root)


def put(root: Path, name: str, content: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_empty_machine_lacks_everything_with_a_remedy(tmp_path: Path) -> None:
    """Each lack is named with what to do; no check fails."""
    findings = {finding.check: finding for finding in doctor.examine(Machine(tmp_path))}
    missing = {name for name, finding in findings.items() if finding.status == "missing"}
    assert {"btf", "bpf", "capabilities", "bpffs", "clsact", "cgroup2"} <= missing
    assert all(finding.remedy for finding in findings.values() if finding.status != "ok")
    assert all("\n" not in finding.detail + finding.remedy for finding in findings.values())


def test_kernel_features_by_type_information(tmp_path: Path) -> None:
    """TCX and clsact are found in the kernel's description of itself."""
    host = machine(tmp_path, **{BTF.replace("/", "__"): "\0other\0BPF_TCX_INGRESS\0clsact_init\0"})
    assert [check(host).status for check in (checks.btf, checks.tcx, checks.clsact)] == ["ok"] * 3
    put(tmp_path, BTF, "\0clsact_init\0")
    assert checks.tcx(host).status == "degraded"
    assert checks.clsact(host).status == "ok"
    put(tmp_path, BTF, "\0BPF_TCX_INGRESS\0")
    assert checks.clsact(host).status == "degraded"  # TCX is enough
    put(tmp_path, BTF, "\0")
    assert checks.clsact(host).status == "missing"  # neither


def test_capabilities_are_named(tmp_path: Path) -> None:
    """What lacks is said by name."""
    host = machine(tmp_path, proc__self__status="Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert checks.capabilities(host).status == "ok"
    put(tmp_path, "proc/self/status", f"CapEff:\t{0x1FFFFFFFFFF & ~(1 << 39) & ~(1 << 12):016x}\n")
    finding = checks.capabilities(host)
    assert finding.status == "missing"
    assert finding.detail == "without CAP_NET_ADMIN, CAP_BPF"


def test_cgroup2_is_found_where_it_is(tmp_path: Path) -> None:
    """Hybrid mode mounts it below."""
    mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    host = machine(tmp_path, proc__self__mounts=mounts)
    assert checks.cgroup2(host) == Check("cgroup2", "ok", "mounted at /sys/fs/cgroup/unified")


def test_exclusive_program_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that tolerates no other at the root would refuse ours; others do no harm."""
    host = machine(tmp_path, proc__self__mounts="cgroup2 /cg cgroup2 rw 0 0\n")
    programs = [
        {"id": 3, "attach_type": "cgroup_inet_ingress", "attach_flags": "multi"},
        {"id": 4, "attach_type": "cgroup_device", "attach_flags": ""},
    ]
    monkeypatch.setattr(Machine, "ask", lambda *_: json.dumps(programs))
    assert checks.cgroup_programs(host).status == "ok"
    programs.append({"id": 5, "attach_type": "cgroup_inet_egress", "attach_flags": ""})
    finding = checks.cgroup_programs(host)
    assert finding.status == "missing"
    assert "program 5" in finding.detail


@pytest.mark.parametrize("answer", ["", '{"error": "cannot query"}', "null"])
def test_no_answer_of_bpftool_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Nothing is known then, and that is said."""
    host = machine(tmp_path, proc__self__mounts="cgroup2 /cg cgroup2 rw 0 0\n")
    monkeypatch.setattr(Machine, "ask", lambda *_: answer)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/sbin/{name}")
    finding = checks.cgroup_programs(host)
    assert (finding.status, finding.detail) == ("degraded", "unknown: bpftool cannot list them")
    assert finding.remedy
    monkeypatch.setattr(Machine, "ask", lambda *_: "[]")
    assert checks.cgroup_programs(host).status == "ok"


def test_disk_is_that_of_the_state_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--state-dir says which."""
    cli.main(["doctor", "--json", "--state-dir", str(tmp_path / "there")])
    details = {finding["check"]: finding["detail"] for finding in json.loads(capsys.readouterr().out)}
    assert details["disk"].endswith(f"GB free for {tmp_path / 'there'}")


def test_open_vswitch_by_its_socket(tmp_path: Path) -> None:
    """Its absence degrades, it does not forbid."""
    assert checks.open_vswitch(Machine(tmp_path)).status == "degraded"
    put(tmp_path, "run/openvswitch/db.sock")
    assert checks.open_vswitch(Machine(tmp_path)).status == "ok"


def test_disk_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is degraded, next to nothing missing."""
    for free, status in ((3 << 30, "ok"), (1 << 30, "degraded"), (1 << 20, "missing")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: type("", (), {"free": free}))
        assert checks.disk(Machine(state_dir=tmp_path / "not" / "there")).status == status
    for kib, status in ((2 << 20, "ok"), (1 << 19, "degraded")):
        put(tmp_path, "proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable:   {kib} kB\n")
        assert checks.memory(Machine(tmp_path)).status == status


def test_chrony_that_is_not_synchronised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A time service that runs is not yet one that is synchronised."""
    line = "A,10.0.0.1,2,1700000000.1,-0.000012,0,0,0,0,0,0,0,0,Normal"
    monkeypatch.setattr(Machine, "ask", lambda _, tool, *__: line if tool == "chronyc" else "")
    assert checks.time_service(Machine(tmp_path)).status == "ok"
    line = line.replace("Normal", "Not synchronised")
    assert checks.time_service(Machine(tmp_path)).status == "degraded"


def test_blind_spots_are_named_with_their_consequence(tmp_path: Path) -> None:
    """Virtual functions, user-space drivers and portless VMs: who, and what is not seen."""
    put(tmp_path, "sys/class/net/eth0/device/sriov_numvfs", "4\n")
    put(tmp_path, "sys/class/net/eth1/device/sriov_numvfs", "0\n")
    put(tmp_path, "sys/bus/pci/drivers/vfio-pci/0000:01:00.0/class", "0x020000\n")
    put(tmp_path, "sys/bus/pci/drivers/vfio-pci/0000:02:00.0/class", "0x030000\n")
    for pid, name, command in (
        (11, "qemu-system-x86", "qemu\0-netdev\0user,id=n0"),
        (12, "qemu-system-x86", "qemu\0-netdev\0tap,id=n0"),
        (13, "sleep", "-netdev\0user"),
    ):
        put(tmp_path, f"proc/{pid}/comm", f"{name}\n")
        put(tmp_path, f"proc/{pid}/cmdline", command)
    host = Machine(tmp_path)
    details = {f.check: (f.status, f.detail) for f in (check(host) for check in blindspots.ALL)}
    assert details["sr-iov"][0] == "degraded"
    assert "eth0 (4)" in details["sr-iov"][1]
    assert "eth1" not in details["sr-iov"][1]
    assert details["dpdk devices"][1].startswith("0000:01:00.0 belong")
    assert details["vms without a port"][1].startswith("qemu processes 11:")


def test_vhost_user_and_offload_by_their_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Open vSwitch and ethtool say is told with its consequence."""
    interfaces = {
        "headings": ["name", "type"],
        "data": [["vhu0", "dpdkvhostuserclient"], ["br0", "internal"]],
    }
    answers = {"list": json.dumps(interfaces), "get": '"true"\n', "-k": "tso: on\nhw-tc-offload: on\n"}
    monkeypatch.setattr(
        Machine, "ask", lambda _, *command: next((a for word, a in answers.items() if word in command), "")
    )
    (tmp_path / "sys/class/net/eth0/device").mkdir(parents=True)
    host = Machine(tmp_path)
    assert "vhu0" in blindspots.vhost_user(host).detail
    assert "br0" not in blindspots.vhost_user(host).detail
    assert "eth0, Open vSwitch" in blindspots.hardware_offload(host).detail


def test_workloads_behind_internal_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the switch with a workload's id is named; a bridge's, and another type with an id, is not."""
    none, some = ["map", []], ["map", [["iface-id", "6a0b"], ["iface-status", "active"]]]
    rows = [["dhcp0", "internal", some], ["br0", "internal", none], ["tap0", "", some]]
    said = [json.dumps({"headings": ["name", "type", "external_ids"], "data": rows}), ""]
    monkeypatch.setattr(Machine, "ask", lambda _, *command: said.pop(0))
    found = blindspots.internal_ports(Machine(tmp_path))
    assert (found.status, "dhcp0: " in found.detail, "tap0" in found.detail) == ("degraded", True, False)
    assert blindspots.internal_ports(Machine(tmp_path)).status == "ok"


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rest is examined all the same."""

    def broken_thing(_: Machine) -> Check:
        raise OSError("no such luck")

    monkeypatch.setattr(checks, "ALL", (broken_thing, checks.btf))
    first, second, *_ = doctor.examine(Machine(tmp_path))
    assert first == Check("broken thing", "degraded", "cannot be examined: no such luck", "run as root")
    assert second.check == "btf"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("degraded", 0), ("missing", 1)])
def test_exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    """Exit 1 only if something required is missing; the document holds every finding."""
    finding = {"check": "x", "status": status, "detail": "d", "remedy": "r"}
    monkeypatch.setattr(doctor, "examine", lambda _: [Check(**finding)])  # type: ignore[arg-type]
    assert cli.main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == [finding]
    assert cli.main(["doctor"]) == code
    assert "→ r" in capsys.readouterr().out
