"""Remembers which orders of a bucket were refused, each until another, or none, is in its place."""

import logging

log = logging.getLogger(__name__)

_MOST = 1000
_TOLD = 5
_NAME = 32


class Refusals:
    """Of one bucket; `what` its documents are, as in 'an order to enforce'."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._refused: dict[str, str] = {}

    def refuse(self, name: str, why: Exception) -> None:
        """What stands there cannot be followed."""
        problem = f"{self._what} '{name[:_NAME]}' is refused: {why}"
        if self._refused.get(name) != problem and len(self._refused) < _MOST:
            log.warning("%s", problem)
            self._refused[name] = problem

    def settle(self, name: str) -> None:
        """What stood there is gone, or is about to be read."""
        self._refused.pop(name, None)

    @property
    def problems(self) -> list[str]:
        """The first few, and how many more there are."""
        told = list(self._refused.values())[:_TOLD]
        more = len(self._refused) - len(told)
        return [*told, *([f"{self._what} is refused {more} times more"] if more else [])]
