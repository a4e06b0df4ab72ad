"""Roles killed at random moments under traffic: nothing is lost, nothing doubled, nothing left.

The probe cuts every 50 ms here, so that at any moment a drain, a publish, an insert or an acknowledgement is
under way. `make crash` runs twenty seeds; without it there are two.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from eastwest.cli.lab import until_metered
from eastwest.lab import Lab, LabConfig
from eastwest.meter import pins
from tests.conftest import require
from tests.system.test_exact import becomes, differences, packets_shown
from tests.system.user_site import Site

SEEDS = range(int(os.environ.get("EASTWEST_SEEDS", "2")))
ROLES = ("probe", "server", "nats-server")
KILLS = 4
LONGEST_PAUSE = 1.5


def victims(chance: random.Random) -> list[tuple[str, ...]]:
    """Singles and pairs, each role among them."""
    choices = [(one,) for one in ROLES] + [("probe", "server"), ("server", "nats-server"), ROLES[::2]]
    return chance.sample(choices, KILLS)


@pytest.mark.parametrize("seed", SEEDS)
def test_roles_killed_at_random_moments(tmp_path: Path, root: None, seed: int) -> None:
    """Labels, flows and ledger end as the senders recorded them; `down` leaves no map, mount or process."""
    require(Path("/usr/bin/ovs-vsctl").exists(), "needs Open vSwitch: apt-get install openvswitch-switch")
    site = Site(tmp_path, Path("/proc/1/ns/net"), Path("/"))
    site.config.write_text('[probe]\nhost = "h1"\ninterval_seconds = 0.05\n')
    maps: list[int] = []
    try:
        with site.up():
            asyncio.run(killed(site, random.Random(seed)))
            maps = map_numbers(site)
    finally:
        site.run("down", "--purge", "--state-dir", str(site.state))
    assert len(maps) > 10
    assert [number for number in maps if exists(number)] == []
    assert str(site.state) not in Path("/proc/mounts").read_text()
    assert site.roles() == {}


async def killed(site: Site, chance: random.Random) -> None:
    async with Lab(LabConfig()) as lab:
        await until_metered(lab.plan, site.environment["EASTWEST_URL"])
        await lab.start()
        for names in victims(chance):
            seen = await asyncio.to_thread(packets_shown, site, lab.plan)
            await becomes(lambda seen=seen: packets_shown(site, lab.plan) > seen, "traffic is counted")  # type: ignore[misc]
            # Not a wait for something: the moment of death is what is tried.
            await asyncio.sleep(chance.uniform(0, LONGEST_PAUSE))
            old = site.roles()
            for name in names:
                os.kill(old[name], signal.SIGKILL)
            await becomes(lambda names=names, old=old: restarted(site, names, old), f"{names} restart")  # type: ignore[misc]
        record = await lab.pause()
        assert sum(w.egress_packets for w in record.workloads) > seen
        await becomes(lambda: not differences(site, lab.plan, record), "all figures agree")


def restarted(site: Site, names: tuple[str, ...], old: dict[str, int]) -> bool:
    now = site.roles()
    return all(now.get(name, old[name]) != old[name] for name in names)


def map_numbers(site: Site) -> list[int]:
    """The kernel's ids of the maps that the site has pinned."""
    found = []
    for pin in pins.directory(site.state).iterdir():
        shown = bpftool("map", "show", "pinned", str(pin))
        if shown.returncode == 0:
            found.append(int(json.loads(shown.stdout)["id"]))
    return found


def exists(number: int) -> bool:
    return bpftool("map", "show", "id", str(number)).returncode == 0


def bpftool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bpftool", "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
