"""The sources of workloads that a probe asks."""

from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.source import Source


def sources(config: InventoryConfig) -> list[Source]:
    """One of each that the settings do not switch off."""
    return []
