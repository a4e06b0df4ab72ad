"""What the labels of a workload say of it, as its owner wrote them."""

import re

from eastwest.bus.messages import Facts
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.model import readable

_HIGHEST_ID = (1 << 32) - 1
LONGEST_WORD = 255
"""Characters of a name, a tenant, a service."""


def facts_of(labels: dict[str, str], config: InventoryConfig) -> tuple[Facts, list[str]]:
    """What a workload's labels say of it, and which of them cannot be used."""
    refused = []

    def word(key: str) -> str | None:
        value = readable(labels.get(key, ""))
        if len(value) > LONGEST_WORD:
            refused.append(f"its label {key} is longer than {LONGEST_WORD} characters")
            return None
        return value or None

    tenant, service = word(config.tenant_label), word(config.service_label)
    number, service_id = word(config.service_id_label), None
    if number:
        if re.fullmatch("[0-9]{1,10}", number) and int(number) <= _HIGHEST_ID:
            service_id = int(number)
        else:
            refused.append(
                f"its label {config.service_id_label} = '{number[:40]}' is no number up to {_HIGHEST_ID}"
            )
    return Facts(tenant=tenant, service=service, service_id=service_id), refused
