"""The XML of a libvirt domain, whoever wrote it."""

import pytest

from eastwest.bus.messages import Facts
from eastwest.errors import InventoryError
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.domain import LONGEST, read
from eastwest.inventory.model import Claim

UUID = "6c1f5a0e-8a51-4c55-9d0c-0f5b8e3f9a11"
OURS = '<e:workload xmlns:e="https://eastwest.dev/libvirt/1" {}/>'
NOVA = """
<nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
  <nova:owner><nova:user uuid="u">admin</nova:user><nova:project uuid="p-1">demo</nova:project></nova:owner>
</nova:instance>
"""


def xml(devices: str = "", metadata: str = "", name: str = "web", attributes: str = "id='3'") -> str:
    return (
        f"<domain type='qemu' {attributes}><name>{name}</name><uuid>{UUID}</uuid>"
        f"<metadata>{metadata}</metadata><devices>{devices}</devices></domain>"
    )


def claim(document: str, config: InventoryConfig | None = None) -> Claim:
    found, refused = read(document, config or InventoryConfig())
    assert found is not None
    assert refused == []
    return found


def test_a_running_domain_is_its_interfaces() -> None:
    """Each by the device on the host's side; one without such a device has none."""
    devices = (
        "<interface type='bridge'><target dev='vnet0'/></interface>"
        "<interface type='ethernet'><target dev='tap1'/><target dev='not-this'/></interface>"
        "<interface type='hostdev'/>"
        "<interface type='bridge'><target dev='longer-than-any-device'/></interface>"
        "<hostdev><target dev='no-interface'/></hostdev>"
    )
    wanted = Claim(f"vm:{UUID}", "vm", "web", devices=frozenset({"vnet0", "tap1"}))
    assert claim(xml(devices)) == wanted


def test_user_mode_networking_is_said() -> None:
    """Then the emulator's sockets are the VM's."""
    assert claim(xml("<interface type='bridge'/><interface type='user'/>")).sockets


def test_what_does_not_run_is_no_workload() -> None:
    """libvirt gives an id to what runs or is paused."""
    assert read(xml(attributes=""), InventoryConfig()) == (None, [])


@pytest.mark.parametrize(
    ("metadata", "facts"),
    [
        ("", Facts()),
        (OURS.format('tenant="a" service="web" service_id="7"'), Facts("a", None, "web", 7)),
        (NOVA, Facts("p-1")),
        (NOVA + OURS.format('tenant="a"'), Facts("a")),
        (OURS.format('tenant="a"') + NOVA, Facts("a")),
        (OURS.format('service="web"') + NOVA, Facts("p-1", None, "web")),
        ('<workload xmlns="https://example.org" tenant="a"/>', Facts()),
        ('<workload tenant="a"/>', Facts()),
        (OURS.format('tenant="a\x7f"'), Facts("a\\x7f")),
    ],
)
def test_metadata_says_whose_it_is(metadata: str, facts: Facts) -> None:
    """Ours before Nova's, nobody else's; fit to be shown."""
    assert claim(xml(metadata=metadata)).facts == facts


def test_the_names_of_attributes_can_be_chosen() -> None:
    """They are the last words of the keys that containers' labels have."""
    config = InventoryConfig(tenant_label="org.example.customer")
    assert claim(xml(metadata=OURS.format('customer="a" tenant="b"')), config).facts == Facts("a")


@pytest.mark.parametrize("value", ["-1", "seven", "4294967296", "9" * 100])
def test_a_service_id_that_is_no_number_is_refused_and_the_rest_holds(value: str) -> None:
    found, refused = read(xml(metadata=OURS.format(f'tenant="a" service_id="{value}"')), InventoryConfig())
    assert found and found.facts == Facts("a")
    assert len(refused) == 1


@pytest.mark.parametrize(
    "document",
    [
        "",
        "no XML",
        "<domain",
        "<domain id='1'/>",
        "<domain id='1'><uuid>not one</uuid></domain>",
        f"<network id='1'><uuid>{UUID}</uuid></network>",
        xml(name="&undefined;"),
        '<!DOCTYPE d [<!ENTITY a "aaaa">]>' + xml(name="&a;"),
        '<!DOCTYPE d SYSTEM "file:///etc/passwd">' + xml(),
        "<a>" * 300_000,
        xml(name="x" * LONGEST),
        xml(name="\0"),
    ],
)
def test_what_cannot_be_understood_is_refused(document: str) -> None:
    """By one error, however it is broken; entities are never expanded."""
    with pytest.raises(InventoryError, match="its XML"):
        read(document, InventoryConfig())
