"""Rules of the TOML file: what a user says of every workload that a selector matches."""

import msgspec

from eastwest.bus.messages import Facts, TrafficClass
from eastwest.errors import ConfigError, EastwestError
from eastwest.labels.selector import Selector

_SEEN = ("label", "name", "kind", "host", "port")
"""What is known of a workload before anybody says anything."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[rule]]`: workloads that `match` selects get these facts; a later rule wins over an earlier."""

    match: str
    tenant: str | None = None
    network: str | None = None
    service: str | None = None
    service_id: int | None = None
    traffic_class: TrafficClass | None = msgspec.field(default=None, name="class")

    def __post_init__(self) -> None:
        try:
            conditions = Selector.parse(self.match).conditions
        except EastwestError as e:
            raise ConfigError(f"rule with match = '{self.match}': {e.what}", e.remedy) from None
        for key, _ in conditions:
            if key not in _SEEN:
                raise ConfigError(
                    f"rule with match = '{self.match}': {key} is what rules say, not what they see",
                    f"match by {', '.join(_SEEN)}",
                )

    @property
    def selector(self) -> Selector:
        return Selector.parse(self.match)

    @property
    def facts(self) -> Facts:
        return Facts(
            tenant=self.tenant,
            network=self.network,
            service=self.service,
            service_id=self.service_id,
            traffic_class=self.traffic_class,
        )
