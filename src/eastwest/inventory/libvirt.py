"""VMs as libvirt knows them: their names, UUIDs, interfaces, and what their metadata says.

libvirt's client blocks, and may do so for ever: no call of it is made on the event loop, and none is waited
for without a limit. Which cgroup an emulator is in libvirt does not say: source `qemu` does, by the UUID.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from eastwest.errors import InventoryError
from eastwest.inventory import domain
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.model import Claim, readable
from eastwest.inventory.source import Source, is_there

SYSTEM = "qemu:///system"
_SOCKETS = tuple(
    Path("/run/libvirt", name)
    for name in ("virtqemud-sock-ro", "libvirt-sock-ro", "virtqemud-sock", "libvirt-sock")
)

_ANSWER_SECONDS = 15.0
_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT = 5, 3
"""A daemon that is silent for this long, this many times, is given up: calls that wait for it end."""

_AT_ONCE = 20
"""Domains that are read in one call."""

_MOST_DOMAINS = 10_000
_REMEDY = 'start libvirt, or have it not asked: libvirt = "" in [inventory]'
_REFUSALS_SAID = 3

T = TypeVar("T")


class _Session:
    """One connection. Methods block; `changed` (a UUID) and `closed` are called on libvirt's own thread."""

    def __init__(
        self, uri: str, config: InventoryConfig, changed: Callable[[str], None], closed: Callable[[], None]
    ) -> None:
        self._uri, self._config = uri, config
        self._changed, self._closed = changed, closed
        self._connection: Any = None
        self._registered: list[int] = []
        self._over = False

    def open(self) -> None:
        import libvirt

        _run_events()
        self._connection = connection = libvirt.openReadOnly(self._uri)
        if self._over:  # nobody waited for it
            self.close()
            return
        # A driver within this process has neither; it cannot be away.
        with suppress(libvirt.libvirtError):
            connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        with suppress(libvirt.libvirtError):
            connection.registerCloseCallback(lambda *_: self._closed(), None)
        for event in (
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
        ):
            self._registered.append(connection.domainEventRegisterAny(None, event, self._event, None))

    def _event(self, _: Any, about: Any, *__: Any) -> None:
        self._changed(about.UUIDString())

    def running(self) -> list[str]:
        """UUIDs of the domains that run or are paused."""
        import libvirt

        domains = self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        return [one.UUIDString() for one in domains]

    def describe(self, uuids: list[str]) -> dict[str, tuple[Claim | None, list[str]]]:
        """uuid → the claim, None where it does not run (any more), and what of it is refused."""
        return {uuid: self._describe(uuid) for uuid in uuids}

    def _describe(self, uuid: str) -> tuple[Claim | None, list[str]]:
        import libvirt

        try:
            document = self._connection.lookupByUUIDString(uuid).XMLDesc()
        except libvirt.libvirtError as e:
            if e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None, []
            raise
        try:
            return domain.read(document, self._config)
        except InventoryError as e:
            return None, [str(e)]

    def close(self) -> None:
        """Let go of everything; what was registered holds the connection."""
        import libvirt

        self._over = True
        if self._connection is None:
            return
        for registered in self._registered:
            with suppress(libvirt.libvirtError):
                self._connection.domainEventDeregisterAny(registered)
        with suppress(libvirt.libvirtError):
            self._connection.unregisterCloseCallback()
        with suppress(libvirt.libvirtError):
            self._connection.close()


class Libvirt(Source):
    """The domains of the daemon at `uri`; `expected`: it is a problem where there is none."""

    def __init__(self, uri: str, *, expected: bool, config: InventoryConfig) -> None:
        super().__init__("libvirt")
        self._uri, self._expected, self._config = uri, expected, config
        self._waiting: asyncio.Future[Any] | None = None
        self._wake = asyncio.Event()
        self._due: set[str] = set()
        self._closed = False
        self._domains: dict[str, tuple[Claim | None, list[str]]] = {}

    async def _follow(self) -> None:
        if not self._there():
            return
        loop = asyncio.get_running_loop()
        self._due, self._closed, self._domains = set(), False, {}
        session = _Session(
            self._uri,
            self._config,
            partial(_from_thread, loop, self._hear),
            partial(_from_thread, loop, self._hear, None),
        )
        try:
            await self._call(session.open)
            # What changes from here on is heard of, and read again after the list.
            uuids = await self._call(session.running)
            await self._read(session, uuids[:_MOST_DOMAINS])
            while True:
                self._tell(len(uuids) - _MOST_DOMAINS)
                await self._wake.wait()
                self._wake.clear()
                if self._closed:
                    raise InventoryError("libvirt closed the connection", "see its log")
                due, self._due = self._due, set()
                await self._read(session, sorted(due))
        finally:
            threading.Thread(target=session.close, name="libvirt-close", daemon=True).start()

    def _there(self) -> bool:
        """Whether to ask. Raises InventoryError where somebody expects an answer and nobody can ask."""
        asked_before = bool(self._claims) or self.problem is not None
        if not (self._expected or asked_before or any(map(is_there, _SOCKETS))):
            return False
        try:
            import_module("libvirt")
        except ImportError:
            if self._expected:
                raise InventoryError(
                    "libvirt-python is not installed", "pip install 'eastwest[libvirt]'"
                ) from None
            return False
        return True

    def _hear(self, uuid: str | None) -> None:
        """A domain changed; None: the connection is closed."""
        if uuid is None:
            self._closed = True
        elif len(self._due) < _MOST_DOMAINS:
            self._due.add(uuid)
        self._wake.set()

    async def _read(self, session: _Session, uuids: list[str]) -> None:
        for start in range(0, len(uuids), _AT_ONCE):
            self._domains |= await self._call(partial(session.describe, uuids[start : start + _AT_ONCE]))
        kept = ((uuid, said) for uuid, said in self._domains.items() if said != (None, []))
        self._domains = dict(islice(kept, _MOST_DOMAINS))

    def _tell(self, too_many: int) -> None:
        refused = [
            f"domain '{claim.name if claim else readable(uuid)}': {word}"
            for uuid, (claim, words) in self._domains.items()
            for word in words
        ]
        more = len(refused) - _REFUSALS_SAID
        said = refused[:_REFUSALS_SAID] + ([f"and {more} more"] if more > 0 else [])
        if too_many > 0:
            said.append(f"{too_many} domains more than the {_MOST_DOMAINS} that are followed")
        claims = {uuid: claim for uuid, (claim, _) in self._domains.items() if claim}
        self._say(claims, "; ".join(said) or None)

    async def _call(self, work: Callable[[], T]) -> T:
        """Run on a thread that nobody has to wait for, one at a time. Raises InventoryError."""
        import libvirt

        if self._waiting:  # an earlier call that never returned
            await self._answer_to(self._waiting)
        self._waiting = asyncio.get_running_loop().create_future()
        settle = partial(_from_thread, asyncio.get_running_loop(), _settle, self._waiting)
        threading.Thread(target=_work, args=(work, settle), name="libvirt", daemon=True).start()
        result, error = await self._answer_to(self._waiting)
        if isinstance(error, libvirt.libvirtError):
            raise InventoryError(
                f"{readable(str(error))[:300]} ({self._uri})", "start libvirt, or see its log"
            )
        if error:
            raise error
        return result  # type: ignore[no-any-return]

    async def _answer_to(self, call: asyncio.Future[Any]) -> tuple[Any, Exception | None]:
        done, _ = await asyncio.wait({call}, timeout=_ANSWER_SECONDS)
        if not done:
            raise InventoryError(
                f"libvirt does not answer within {_ANSWER_SECONDS:g} s ({self._uri})",
                "restart it, or see its log",
            )
        self._waiting = None
        answer: tuple[Any, Exception | None] = call.result()
        return answer


def _work(work: Callable[[], Any], settle: Callable[[tuple[Any, Exception | None]], None]) -> None:
    try:
        settle((work(), None))
    except Exception as e:  # noqa: BLE001 (it is raised where the answer is waited for)
        settle((None, e))


def _settle(future: asyncio.Future[Any], answer: tuple[Any, Exception | None]) -> None:
    if not future.done():
        future.set_result(answer)


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    with suppress(RuntimeError):  # the probe has ended
        loop.call_soon_threadsafe(call, *arguments)


@cache
def _run_events() -> None:
    """libvirt has one event loop in a process, for all connections; without it, nobody hears of anything."""
    import libvirt

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    libvirt.registerErrorHandler(lambda *_: None, None)  # it would write to stderr what is raised as well
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=run, name="libvirt-events", daemon=True).start()
