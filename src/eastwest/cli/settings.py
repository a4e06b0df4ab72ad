"""Every setting there is: what `up` and the server check before they start."""

import msgspec

from eastwest.bus.client import BusConfig
from eastwest.collector.collector import CollectorConfig
from eastwest.collector.streamconfig import StreamsConfig
from eastwest.export.config import ExportConfig
from eastwest.inventory.config import InventoryConfig
from eastwest.labels.rules import Rule
from eastwest.manager.manager import ManagerConfig
from eastwest.probe.config import ProbeConfig, SuspectConfig
from eastwest.store.store import StoreConfig
from eastwest.tap.config import TapConfig
from eastwest.watch.config import AlertsConfig, DetectConfig
from eastwest.watch.definition import Definition


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sections of the TOML file."""

    probe: ProbeConfig = msgspec.field(default_factory=ProbeConfig)
    inventory: InventoryConfig = msgspec.field(default_factory=InventoryConfig)
    bus: BusConfig = msgspec.field(default_factory=BusConfig)
    rule: list[Rule] = msgspec.field(default_factory=list)
    suspect: SuspectConfig = msgspec.field(default_factory=SuspectConfig)
    tap: TapConfig = msgspec.field(default_factory=TapConfig)
    server: ManagerConfig = msgspec.field(default_factory=ManagerConfig)
    collector: CollectorConfig = msgspec.field(default_factory=CollectorConfig)
    store: StoreConfig = msgspec.field(default_factory=StoreConfig)
    export: ExportConfig = msgspec.field(default_factory=ExportConfig)
    watch: list[Definition] = msgspec.field(default_factory=list)
    alerts: AlertsConfig = msgspec.field(default_factory=AlertsConfig)
    detect: DetectConfig = msgspec.field(default_factory=DetectConfig)
    streams: StreamsConfig = msgspec.field(default_factory=StreamsConfig)
