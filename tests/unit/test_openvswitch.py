"""Rows of Open vSwitch's database and what they claim; the bytes they come in."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.bus.messages import Facts
from eastwest.errors import ConfigError, InventoryError
from eastwest.inventory.config import InventoryConfig, ovsdb_endpoint
from eastwest.inventory.model import Claim
from eastwest.inventory.openvswitch import (
    Bridge,
    BridgeChange,
    Change,
    Interface,
    InterfaceChange,
    OpenVSwitch,
    Port,
    PortChange,
    Rows,
    claim,
    network,
)
from eastwest.inventory.ovsdb import Frames, Monitor, references

VM = "6c1f5a0e-8a51-4c55-9d0c-0f5b8e3f9a11"
NO_TAG = ("set", [])


def port(tag: object = NO_TAG, interfaces: object = ("uuid", "i1"), **other_config: str) -> Port:
    return Port(tag, interfaces, ("map", list(other_config.items())))  # type: ignore[arg-type]


def interface(name: str = "tap0", kind: str = "", **ids: str) -> Interface:
    return Interface(name, kind, ("map", [(key.replace("_", "-"), value) for key, value in ids.items()]))


@pytest.mark.parametrize(
    ("ids", "identity", "kind", "name"),
    [
        ({"vm_id": VM}, f"vm:{VM}", "vm", VM),
        ({"vm_uuid": VM.upper()}, f"vm:{VM}", "vm", VM),
        ({"vm_id": VM, "iface_id": "p1"}, f"vm:{VM}", "vm", VM),
        ({"vm_id": "web-1", "iface_id": "p1"}, "port:p1", "port", "p1"),
        ({"iface_id": "p\n1", "attached_mac": "52:54:00:00:00:01"}, "port:p\\n1", "port", "p\\n1"),
        ({"iface_id": "x" * 256}, "", "port", ""),
        ({"vm_id": "", "iface_id": ""}, "", "port", ""),
        ({}, "", "port", ""),
    ],
)
def test_an_interface_is_claimed_for_whom_its_ids_name(
    ids: dict[str, str], identity: str, kind: str, name: str
) -> None:
    """A VM by its UUID, else a port by its own id; where nobody is named only the network is said."""
    expected = Claim(identity, kind, name, Facts(network="7"), frozenset({"tap0"}))  # type: ignore[arg-type]
    assert claim(interface(**ids), port(7)) == expected


@pytest.mark.parametrize("kind", ["internal", "patch", "vxlan", "geneve", "gre", "dpdk", "erspan", "new"])
def test_what_is_no_workloads_interface_is_not_claimed(kind: str) -> None:
    assert claim(interface("if0", kind, iface_id="p1"), port(7)) is None


def test_a_port_with_nothing_to_say_says_nothing() -> None:
    """Most likely an uplink."""
    assert claim(interface("eth0"), port()) is None


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (port(), ""),
        (port(0), "0"),
        (port(4094), "4094"),
        (port(3, network_type="vxlan", segmentation_id="70000"), "70000"),
        (port(3, network_type="geneve", segmentation_id="5"), "5"),
        (port(3, network_type="gre", segmentation_id="5"), "5"),
        (port(3, network_type="vlan", segmentation_id="1200"), "1200"),
        (port(3, network_type="flat", segmentation_id="9"), "3"),
        (port(3, network_type="vxlan"), "3"),
        (port(3, network_type="vxlan", segmentation_id="-1"), "3"),
        (port(3, network_type="vxlan", segmentation_id="9" * 11), "3"),
        (port(network_type="vxlan", segmentation_id="x"), ""),
    ],
)
def test_a_network_is_the_segment_else_the_vlan(row: Port, expected: str) -> None:
    """What Neutron's agent writes down holds on every host, its tags on this one only."""
    assert network(row) == expected


def row(name: str = "tap0", kind: str = "", **ids: str) -> dict[str, InterfaceChange]:
    return {"i1": InterfaceChange(interface(name, kind, **ids))}


def test_a_claim_follows_both_of_its_rows() -> None:
    """Whichever comes first, changes or goes."""
    rows = Rows()
    rows.apply(Change(interfaces=row(iface_id="p1")))
    assert rows.claims == {}
    rows.apply(Change(ports={"p": PortChange(port(5))}))
    assert rows.claims["i1"] == Claim("port:p1", "port", "p1", Facts(network="5"), frozenset({"tap0"}))
    rows.apply(Change(ports={"p": PortChange(port(6))}))
    assert rows.claims["i1"].facts.network == "6"
    rows.apply(Change(interfaces=row(iface_id="p2")))
    assert rows.claims["i1"].identity == "port:p2"
    rows.apply(Change(ports={"p": PortChange(port(6, ("set", [("uuid", "i2")])))}))
    assert rows.claims == {}
    rows.apply(Change(ports={"p": PortChange(port(6))}))
    rows.apply(Change(ports={"p": PortChange()}, interfaces={"i1": InterfaceChange()}))
    assert rows.claims == {}


def test_interfaces_of_bridges_in_user_space_are_known() -> None:
    """Whatever their type: how they receive does not depend on it."""
    rows = Rows()
    ports = {"p": PortChange(port())}
    for datapath, devices in (("netdev", ["tap0"]), ("dummy", ["tap0"]), ("system", []), ("", [])):
        bridge = BridgeChange(Bridge(("uuid", "p"), datapath))
        rows.apply(Change({"b": bridge}, ports, row("tap0", "internal")))
        assert list(rows.userspace_devices()) == devices


def test_ids_that_are_too_long_are_named() -> None:
    """They are not used; where they stand, somebody can correct them."""
    rows = Rows()
    rows.apply(Change(ports={"p": PortChange(port(5))}, interfaces=row(iface_id="x" * 256)))
    assert rows.claims["i1"].identity == ""
    where = "external_ids:iface-id of interface 'tap0'"
    assert rows.refused == f"{where} has more than 255 characters (1 such in all); shorten it"
    rows.apply(Change(interfaces=row(iface_id="p1")))
    assert rows.refused is None


def test_more_interfaces_than_any_host_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered here, so that the rows are few."""
    monkeypatch.setattr("eastwest.inventory.openvswitch._MOST_INTERFACES", 2)
    rows = Rows()
    rows.apply(Change(interfaces={str(n): InterfaceChange(interface()) for n in range(2)}))
    with pytest.raises(InventoryError, match="more than 2 interfaces"):
        rows.apply(Change(interfaces={"3": InterfaceChange(interface())}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(("uuid", "a"), ["a"]), (("set", []), []), (("set", [["uuid", "a"], ["uuid", "b"]]), ["a", "b"])],
)
def test_references_are_read(value: tuple[str, object], expected: list[str]) -> None:
    assert references(value) == expected


@pytest.mark.parametrize("value", [("uuid", 1), ("set", "a"), ("set", [["named-uuid", "a"]]), ("x", None)])
def test_what_is_no_reference_is_refused(value: tuple[str, object]) -> None:
    with pytest.raises(InventoryError, match="cannot be understood"):
        references(value)


# -- frames ------------------------------------------------------------------------------------------------

MESSAGES = [
    b'{"a":{"b":"}{"}}',
    b"{}",
    rb'{"q":"\"}\\","e":"\\\\"}',
    '{"u":"größe{"}'.encode(),
    b'{"n":[{}]}',
]


@given(st.lists(st.integers(1, 7), min_size=1), st.booleans())
def test_messages_are_cut_wherever_the_bytes_are(sizes: list[int], spaced: bool) -> None:
    """However the stream comes in pieces; what stands in strings ends nothing."""
    stream = (b" \n" if spaced else b"").join(MESSAGES)
    frames, found, at, turn = Frames(), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        found += frames.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert found == MESSAGES


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 200 OK", b"}", b"[]", b"{}x", b"\x00", b"\xff" * 9, b'"{}"'])
def test_what_is_no_object_is_refused_at_once(garbage: bytes) -> None:
    with pytest.raises(InventoryError, match="cannot be understood"):
        Frames().feed(garbage)


def test_a_message_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered here, so that the message is short."""
    monkeypatch.setattr("eastwest.inventory.ovsdb._LARGEST", 1 << 20)
    frames = Frames()
    assert frames.feed(b'{"a":"' + b"x" * (1 << 19)) == []
    with pytest.raises(InventoryError, match="more than 1 MiB"):
        frames.feed(b"x" * (1 << 19))


# -- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("/run/ovs/db.sock", Path("/run/ovs/db.sock")),
        ("unix:/run/ovs/db.sock", Path("/run/ovs/db.sock")),
        ("tcp:10.0.0.1:6640", ("10.0.0.1", 6640)),
        ("tcp:ovsdb.example:6640", ("ovsdb.example", 6640)),
        ("tcp:[::1]:6640", ("::1", 6640)),
    ],
)
def test_a_database_may_be_a_socket_or_remote(text: str, endpoint: object) -> None:
    assert ovsdb_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text", ["db.sock", "tcp:1.2.3.4", "tcp:::1:6640", "tcp:a:0", "tcp:a:65536", "ssl:a:1"]
)
def test_another_place_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="choose the path of a socket, or tcp:HOST:PORT"):
        InventoryConfig(openvswitch=text)


def test_what_cannot_be_a_hosts_name_is_a_problem() -> None:
    """Python refuses to look it up with an error of another kind."""

    async def test() -> None:
        monitor = Monitor(("a..b", 6640), "Open_vSwitch", {}, Change, patience=15, quiet=30)
        with pytest.raises(InventoryError, match="cannot be reached"):
            async with monitor:
                pass

    asyncio.run(test())


def test_it_speaks_by_hearsay() -> None:
    """What is plugged in need not be a workload's."""
    assert OpenVSwitch(None).hearsay
