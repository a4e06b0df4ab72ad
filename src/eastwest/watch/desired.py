"""Watches and silences that people add while the server runs, kept on the bus so that they outlive it."""

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from eastwest.bus.background import Working
from eastwest.bus.client import Bus
from eastwest.bus.messages import Silence
from eastwest.errors import ConfigError, EastwestError, NotFoundError, RefusedError
from eastwest.watch.definition import Definition, check_silence

log = logging.getLogger(__name__)

_MOST = 1000
T = TypeVar("T", bound=msgspec.Struct)


class Kept(Working, Generic[T]):
    """The documents of one bucket, followed while it is entered; what cannot be used is left out."""

    def __init__(self, bus: Bus, bucket: str, kind: type[T], check: Callable[[T], None]) -> None:
        super().__init__(bucket)
        self._bucket = bus.bucket(bucket)
        self._name = bucket
        self._kind = kind
        self._check = check
        self.documents: dict[str, T] = {}
        self.unreadable: dict[str, str] = {}
        """Key → why."""

    async def put(self, key: str, document: T) -> None:
        """Raises BusError; RefusedError where there are too many."""
        if key not in self.documents and len(self.documents) >= _MOST:
            raise RefusedError(f"there are {_MOST} already", "remove what is not needed any more")
        await self._bucket.put(key, msgspec.json.encode(document))
        self.documents[key] = document

    async def remove(self, key: str) -> None:
        """Raises BusError."""
        await self._bucket.delete(key)
        self.documents.pop(key, None)

    async def _run(self) -> None:
        async for key, value in self._bucket.watch():
            self.documents.pop(key, None) if value is None else None
            self.unreadable.pop(key, None)
            if value is None:
                continue
            try:
                document = msgspec.json.decode(value, type=self._kind)
                self._check(document)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, EastwestError) as error:
                self.documents.pop(key, None)
                self.unreadable[key] = str(error)
                log.warning("%s of %s cannot be used: %s", key, self._name, error)
                continue
            self.documents[key] = document


class Watches:
    """All watches: those of the TOML file, and those that were added."""

    def __init__(self, fixed: Iterable[Definition], kept: Kept[Definition]) -> None:
        self._fixed: dict[str, Definition] = {}
        for watch in fixed:
            if watch.name in self._fixed:
                raise ConfigError(f"two watches are named '{watch.name}'", "give one another name")
            self._fixed[watch.name] = watch
        self._kept = kept

    @property
    def all(self) -> list[Definition]:
        """By name; where both have a name, the file's."""
        found = {**self._kept.documents, **self._fixed}
        return [found[name] for name in sorted(found)]

    def source(self, name: str) -> str:
        return "file" if name in self._fixed else "api"

    async def add(self, watch: Definition) -> None:
        """Add or replace. Raises RefusedError, BusError."""
        self._refuse_fixed(watch.name)
        await self._kept.put(watch.name, watch)

    async def remove(self, name: str) -> None:
        """Raises NotFoundError, RefusedError, BusError."""
        self._refuse_fixed(name)
        if name not in self._kept.documents:
            raise NotFoundError(f"there is no watch '{name}'", "see: eastwest watch list")
        await self._kept.remove(name)

    def _refuse_fixed(self, name: str) -> None:
        if name in self._fixed:
            raise RefusedError(f"watch '{name}' is in the settings file", "change it there")


class Silences:
    """What nobody is to be told of."""

    def __init__(self, kept: Kept[Silence]) -> None:
        self._kept = kept

    @property
    def all(self) -> list[Silence]:
        """Those that hold now, the first to end first."""
        now = time.time_ns()
        holding = [silence for silence in self._kept.documents.values() if silence.until > now]
        return sorted(holding, key=lambda silence: silence.until)

    async def add(self, until: int, alert: str, match: str | None, comment: str) -> Silence:
        """Raises RefusedError, ConfigError, BusError."""
        silence = Silence(id=secrets.token_hex(6), until=until, alert=alert, match=match, comment=comment)
        check_silence(silence)
        await self._kept.put(silence.id, silence)
        return silence

    async def remove(self, name: str) -> None:
        """Raises NotFoundError, BusError."""
        if name not in {silence.id for silence in self.all}:
            raise NotFoundError(f"there is no silence '{name}'", "see: eastwest alerts silences")
        await self._kept.remove(name)

    async def expire(self) -> None:
        """Remove those that are over. Raises BusError."""
        now = time.time_ns()
        for silence in [s for s in self._kept.documents.values() if s.until <= now]:
            await self._kept.remove(silence.id)
