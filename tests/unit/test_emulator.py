"""A QEMU command line, as anybody may have written it."""

import json

import pytest

from eastwest.inventory.emulator import CommandLine, parse

UUID = "6c1f5a0e-8a51-4c55-9d0c-0f5b8e3f9a11"
QUIET = ["-nic", "none"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["-name", "web"], "web"),
        (["--name", "web,process=other"], "web"),
        (["-name", "guest=web,debug-threads=on"], "web"),
        (["-name", "process=other,guest=web"], "web"),
        (["-name", "a,,b=c"], ""),
        (["-name", "guest=a,,b=c"], "a,b=c"),
        (["-name", "old", "-name", "new"], "new"),
        (["-name", "debug-threads=on"], ""),
        (["-name"], ""),
        (["-name", "a\x1b[31m"], "a\\x1b[31m"),
        (["-name", "x" * 1000], "x" * 255),
        ([], ""),
    ],
)
def test_the_name_is_the_guests(arguments: list[str], name: str) -> None:
    """Not the window's or the process'; bounded, and fit to be shown."""
    assert parse([*QUIET, *arguments]) == CommandLine(name=name)


@pytest.mark.parametrize(
    ("given", "uuid"),
    [
        (UUID, UUID),
        (UUID.upper(), UUID),
        ("00000000-0000-0000-0000-000000000000", ""),
        (f"{UUID}\n", ""),
        ("-name", ""),
        ("", ""),
    ],
)
def test_only_a_uuid_is_a_uuid(given: str, uuid: str) -> None:
    """In lower case, as libvirt writes it; one that says nothing is none."""
    assert parse([*QUIET, "-uuid", given]).uuid == uuid


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-m", "128"],
        ["-netdev", "user,id=n0"],
        ["--netdev", "id=n0,type=user"],
        ["-netdev", json.dumps({"type": "user", "id": "n0"})],
        ["-nic", "user,model=virtio"],
        ["-nic", "model=virtio,type=user"],
        ["-net", "nic", "-net", "user"],
        ["-netdev", "tap,id=n0", "-netdev", "user,id=n1"],
    ],
)
def test_user_mode_networking_is_known(arguments: list[str]) -> None:
    """In each of its forms, and where nothing is said, for then QEMU takes it."""
    assert parse(arguments).user_network


@pytest.mark.parametrize(
    "arguments",
    [
        ["-nodefaults"],
        ["-nic", "none"],
        ["-net", "none"],
        ["-nic", "tap,ifname=user"],
        ["-netdev", "tap,id=user"],
        ["-netdev", json.dumps({"type": "tap", "id": "user"})],
        ["-netdev", json.dumps(["user"])],
        ["-netdev", json.dumps({"type": {"type": "user"}})],
        ["-netdev", '{"type":"user"'],
        ["-netdev", "{" * 200_000],
        ["-netdev", "[" * 200_000],
        ["-netdev"],
    ],
)
def test_what_is_not_user_mode_networking_is_not_taken_for_it(arguments: list[str]) -> None:
    """Other back ends, none at all, and what cannot be understood."""
    assert not parse(arguments).user_network


@pytest.mark.parametrize(
    "arguments", [["-machine", "none,accel=kvm"], ["-M", "none"], ["-machine", "type=none"]]
)
def test_a_machine_of_none_runs_no_vm(arguments: list[str]) -> None:
    """A management program asks such an emulator what it can do."""
    assert not parse(arguments).machine
    assert parse(["-machine", "q35"]).machine
