"""What the XML of a libvirt domain says of the VM.

Part of it was written by whoever defined the domain: it is bounded, and declares no entities.

    <metadata>
      <workload xmlns="https://eastwest.dev/libvirt/1" tenant="a" service="web" service_id="7"/>
    </metadata>

is written by `virsh metadata DOMAIN https://eastwest.dev/libvirt/1 --key eastwest --set '<workload …/>'`.
"""

import re
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

from eastwest.bus.messages import Facts
from eastwest.errors import InventoryError
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.facts import LONGEST_WORD, facts_of
from eastwest.inventory.model import Claim, readable

LONGEST = 1 << 20
"""Characters of XML that are read."""

_WORKLOAD = "https://eastwest.dev/libvirt/1 workload"
_NOVA_PROJECT = re.compile(r"http://openstack\.org/xmlns/libvirt/nova/[0-9.]+ project")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DEVICE_CHARACTERS = 15


def read(document: str, config: InventoryConfig) -> tuple[Claim | None, list[str]]:
    """The VM, None where it does not run; and what of its metadata cannot be used. Raises InventoryError."""
    if len(document) > LONGEST:
        raise InventoryError(f"its XML has more than {LONGEST} characters")
    domain = _parse(document)
    uuid = (domain.findtext("uuid") or "").lower()
    if domain.tag != "domain" or not _UUID.fullmatch(uuid):
        raise InventoryError("its XML is no domain's, or has no UUID")
    if "id" not in domain.attrib:
        return None, []
    facts, refused = _facts(domain.find("metadata"), config)
    interfaces = domain.findall("devices/interface")
    claim = Claim(
        identity=f"vm:{uuid}",
        kind="vm",
        name=readable(domain.findtext("name") or uuid)[:LONGEST_WORD],
        facts=facts,
        devices=frozenset(device for interface in interfaces if (device := _device(interface))),
        sockets=any(interface.get("type") == "user" for interface in interfaces),
    )
    return claim, refused


def _parse(document: str) -> Element:
    """The document's root; the names of elements are `namespace name`."""
    builder = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(document, True)
        return builder.close()
    except (expat.ExpatError, ParseError, AssertionError, ValueError) as e:
        raise InventoryError(f"its XML cannot be read ({e})") from None


def _refuse(*_: object) -> None:
    raise InventoryError("its XML declares a document type, which libvirt never does")


def _device(interface: Element) -> str:
    target = interface.find("target")
    device = readable(target.get("dev", "")) if target is not None else ""
    return device if len(device) <= _DEVICE_CHARACTERS else ""


def _facts(metadata: Element | None, config: InventoryConfig) -> tuple[Facts, list[str]]:
    labels: dict[str, str] = {}
    for element in metadata.iter() if metadata is not None else ():
        if element.tag == _WORKLOAD:
            for key in (config.tenant_label, config.service_label, config.service_id_label):
                # The name of an attribute is a key's last word: eastwest.tenant → tenant.
                labels[key] = element.get(key.rpartition(".")[2]) or labels.get(key, "")
        elif _NOVA_PROJECT.fullmatch(element.tag):
            labels[config.tenant_label] = labels.get(config.tenant_label) or element.get("uuid") or ""
    return facts_of(labels, config)
