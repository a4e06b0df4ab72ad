"""Who may change what the API shows: root's command line, and no other process on the host."""

import json
import stat
import subprocess
import sys
from pathlib import Path

from eastwest.cli import apikey
from tests.conftest import Workload
from tests.system.user_site import Site, until

# Becomes nobody, then reads, changes something, and looks for the secret. Prints how each ended.
_STRANGER = """
import json, os, sys
from http.client import HTTPConnection
port, key = sys.argv[1:]

def ask(method, path, body=None):
    connection = HTTPConnection("127.0.0.1", int(port))
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    return connection.getresponse().status

ask("GET", "/api/v1/labels")  # whatever Python loads for this, it loads as root
os.setgroups([]); os.setgid(65534); os.setuid(65534)

def read():
    try:
        return open(key).read()
    except OSError as error:
        return type(error).__name__

print(json.dumps([
    ask("GET", "/api/v1/labels"),
    ask("POST", "/api/v1/labels/x", {"tenant": "stolen"}),
    ask("POST", "/api/v1/enforcement", {"selector": ""}),
    ask("DELETE", "/api/v1/suspect", {"what": "10.0.0.0/8"}),
    ask("GET", "/api/v1/taps/x/stream"),
    read(),
]))
"""


def test_a_process_without_privileges_changes_nothing(site: Site, netns: Path) -> None:
    """It may read figures, no packets; root's command line finds the secret by itself, until `up` ends."""
    key = apikey.DIRECTORY / f"{site.port}.key"
    with site.up() as up, Workload(netns) as workload:
        until(lambda: workload.name in [row["name"] for row in site.json("workloads")], "it is known")
        command = [sys.executable, "-c", _STRANGER, str(site.port), str(key)]
        stranger = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(stranger.stdout) == [200, 401, 401, 401, 401, "PermissionError"]
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert site.run("label", "set", workload.name, "tenant=mine").returncode == 0
        until(
            lambda: (
                {row["tenant"] for row in site.json("workloads") if row["name"] == workload.name} == {"mine"}
            ),
            "what root says holds",
        )
        up.terminate()
        up.wait()
        assert not key.exists()


def test_each_start_has_a_secret_of_its_own(site: Site) -> None:
    """What a killed `up` left behind opens nothing, and goes with `down`."""
    key = apikey.DIRECTORY / f"{site.port}.key"
    with site.up():
        first = key.read_text()
    with site.up():
        assert key.read_text() != first
    assert key.exists()
    site.down()
    assert not key.exists()
