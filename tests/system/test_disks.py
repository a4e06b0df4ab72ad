"""Disks that fill up under traffic: it goes on, totals stay exact, the alarm is clear, and all recovers."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Workload, run
from tests.system.user_site import Site, until

DISK = "400m"
SENT = 50


@contextmanager
def small_disk(place: Path, spare: Path) -> Iterator[None]:
    """Put a directory, with what is in it, on a disk of its own."""
    place.mkdir(parents=True, exist_ok=True)
    run("cp", "-a", str(place), str(spare))
    run("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place))
    try:
        run("cp", "-a", f"{spare}/.", str(place))
        yield
    finally:
        run("umount", "--lazy", str(place))


@contextmanager
def full(place: Path) -> Iterator[None]:
    """No byte is left on the disk of `place`."""
    ballast = place / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=64k"], capture_output=True, check=False)
    assert ballast.stat().st_size
    try:
        yield
    finally:
        ballast.unlink()


def shown(site: Site, workload: Workload) -> int:
    """Packets that the workload sent, as `labels` has them."""
    rows = site.run("labels", "--json")
    found = json.loads(rows.stdout) if rows.returncode == 0 else []
    return sum(row["egress_packets"] for row in found if row["name"] == workload.name)


def settled(site: Site) -> bool:
    """Whether nothing is pending; `ledger` does not answer while nats-server is started again."""
    ledger = site.run("ledger", "--json")
    rows = json.loads(ledger.stdout) if ledger.returncode == 0 else []
    return bool(rows) and all(row["balanced"] and not row["pending_packets"] for row in rows)


@pytest.mark.parametrize(
    ("place", "alarm"),
    [("store", "is full"), ("nats", "no space left on device"), (".", "no space left on device")],
)
def test_a_full_disk_costs_nothing_but_time(
    site: Site, netns: Path, tmp_path: Path, place: str, alarm: str
) -> None:
    """The store's, the bus's, and the one disk of all: what is sent meanwhile is there once it has room."""
    if place != ".":
        with site.up() as first:  # what holds files of others is no state directory
            first.terminate()
            first.wait()
    errors = tmp_path / "up.err"
    disk = site.state / place
    with small_disk(disk, tmp_path / "spare"), site.up() as up, Workload(netns) as workload:
        until(lambda: workload.name in [row["name"] for row in site.json("workloads")], "it is known")
        workload.send(SENT)
        until(lambda: shown(site, workload) == SENT, "it is counted")
        with full(disk):
            for port in range(20):
                workload.send(SENT, port=3000 + port)
            until(lambda: alarm in errors.read_text(), "an alarm")
            assert up.poll() is None
        until(lambda: shown(site, workload) == 21 * SENT, "what was sent meanwhile is stored")
        # Totals are stored as they come; rows that are sent again come after them, and are pending till then.
        until(lambda: settled(site), "the ledger balances, and nothing is pending")
        flows = site.json("flows", "--since", "1h", "--label", f"name={workload.name}")
        assert sum(row["packets"] for row in flows) == 21 * SENT
        up.terminate()
        up.wait()
        site.down()


def test_a_disk_that_cannot_be_written_is_refused(site: Site) -> None:
    """Before anything starts, in one line that names it."""
    site.state.mkdir()
    run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(site.state))
    try:
        refused = subprocess.run(
            site.up_command("--for", "1"), env=site.environment, capture_output=True, text=True, check=False
        )
    finally:
        run("umount", str(site.state))
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert str(site.state) in line
    assert "Read-only file system" in line
