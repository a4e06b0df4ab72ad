"""Selectors: how a person names workloads, `tenant=a,service=web*`."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from eastwest.errors import RefusedError

KEYS = ("label", "name", "kind", "tenant", "network", "service", "service_id", "host", "port")


@dataclass(frozen=True)
class Selector:
    """Conditions that must all hold; an empty one matches every workload. Values may hold `*`."""

    conditions: tuple[tuple[str, str], ...] = ()

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> "Selector":
        """Read `key=value[,key=value…]`. Raises RefusedError with the known keys."""
        conditions = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals or key not in KEYS:
                raise RefusedError(
                    f"'{part}' is not a selector condition",
                    f"write key=value[,key=value…] with a key of: {', '.join(KEYS)}",
                )
            conditions.append((key, value))
        return cls(tuple(conditions))

    def matches(self, workload: Mapping[str, str | int | list[str]]) -> bool:
        """Whether a workload, given by these keys, is selected; for a list (port) any member may match."""
        return all(_holds(workload.get(key, ""), pattern) for key, pattern in self.conditions)


def _holds(value: str | int | list[str], pattern: str) -> bool:
    if isinstance(value, (str, int)):
        return _like(str(value), pattern)
    return any(_like(item, pattern) for item in value)


def _like(value: str, pattern: str) -> bool:
    # Only `*` is special: `[` and `?` occur in real names.
    return fnmatchcase(value, pattern.replace("[", "[[]").replace("?", "[?]"))
