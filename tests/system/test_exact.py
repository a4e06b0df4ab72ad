"""The lab against the whole product: every figure is the senders', also with roles killed under traffic."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eastwest.cli.lab import until_metered
from eastwest.lab import Lab, LabConfig, Record
from eastwest.lab.plan import Plan
from eastwest.lab.verdict import Owner, judge
from tests.conftest import require
from tests.system.user_site import Site, until


@pytest.fixture(autouse=True)
def programs(root: None) -> None:
    require(shutil.which("ovs-vsctl"), "needs Open vSwitch: apt-get install openvswitch-switch")


def test_the_demo_shows_only_what_the_senders_recorded() -> None:
    """Without a terminal it compares all that it prints, and ends well."""
    command = [sys.executable, "-m", "eastwest", "demo", "--plain", "--seconds", "5"]
    demo = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "✓ every figure equals the senders' record: 6 labels, 42 flows" in demo.stdout
    for title in ("Labels", "Top flows", "Ledger", "Own cost"):
        assert title in demo.stdout
    if shutil.which("tshark"):
        assert "tcp.segments" in demo.stdout and "_ws.malformed" not in demo.stdout


def test_roles_killed_under_traffic_lose_and_double_nothing(tmp_path: Path) -> None:
    """kill -9 of probe, server and bus, one after the other: totals, flows and ledger end exact."""
    site = Site(tmp_path, Path("/proc/1/ns/net"), Path("/"))
    site.config.write_text('[probe]\nhost = "h1"\ninterval_seconds = 0.5\n')
    try:
        with site.up():
            asyncio.run(kill_under_traffic(site, ("probe", "server", "nats-server", "probe")))
    finally:
        site.run("down", "--purge", "--state-dir", str(site.state))


async def kill_under_traffic(site: Site, victims: tuple[str, ...]) -> None:
    async with Lab(LabConfig()) as lab:
        await until_metered(lab.plan, site.environment["EASTWEST_URL"])
        await lab.start()
        for role in victims:
            seen = await asyncio.to_thread(packets_shown, site, lab.plan)
            await becomes(lambda seen=seen: packets_shown(site, lab.plan) > seen, "traffic is counted")  # type: ignore[misc]
            old = site.roles()[role]
            os.kill(old, signal.SIGKILL)
            await becomes(lambda role=role, old=old: site.roles().get(role, old) != old, f"{role} restarts")  # type: ignore[misc]
        record = await lab.pause()
        assert sum(w.egress_packets for w in record.workloads) > seen
        await becomes(lambda: not differences(site, lab.plan, record), "all figures agree")


async def becomes(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(until, condition, what)


def differences(site: Site, plan: Plan, record: Record) -> list[str]:
    """Between what is shown and what was sent; one of its own while the API does not answer."""
    flows = ("flows", "--since", "1h", "--limit", "1000000")
    answers = [site.run(*arguments, "--json") for arguments in (("ledger",), ("labels",), flows)]
    if any(answer.returncode for answer in answers):
        return [answer.stderr for answer in answers]
    ledger, labels, rows = (json.loads(answer.stdout) for answer in answers)
    owners = {guest.name: Owner("", "") for guest in plan.guests}
    return judge(record, owners, labels, rows, ledger).differences


def packets_shown(site: Site, plan: Plan) -> int:
    """Packets that the lab's workloads sent, as the API has them; 0 while it does not answer."""
    answer = site.run("labels", "--json")
    if answer.returncode:
        return 0
    return sum(
        row["egress_packets"] for row in json.loads(answer.stdout) if row["name"].startswith(plan.name)
    )
