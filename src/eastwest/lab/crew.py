"""The parent's end of an actor: starting it in its place, giving orders, hearing reports."""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from eastwest.errors import EastwestError, MissingFeature
from eastwest.lab.plan import GUEST_INTERFACE, QUIET, Group, Guest
from eastwest.lab.record import ActorReport

SCRIPT = Path(__file__).with_name("actor.py")
NETNS_DIRECTORY = Path("/run/netns")
LINE_LIMIT = 1 << 20


class Actor:
    """One workload's process; what goes wrong in it is in `log`."""

    def __init__(self, workload: Guest | Group, slice_directory: Path, log: Path, deadline: float) -> None:
        self.workload = workload
        self._log = log
        self._deadline = deadline
        self._place: dict[str, Any] = (
            {"cgroup": str(slice_directory / workload.directory)}
            if isinstance(workload, Group)
            else {"sysctl": QUIET, "interface": GUEST_INTERFACE}
        )
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Returns when the process is in its place; it has no socket before."""
        command = [sys.executable, "-I", "-S", str(SCRIPT), json.dumps(self._place)]
        if isinstance(self.workload, Guest):
            # Not `ip netns exec`: it remounts /sys, which hides cgroups.
            command = ["nsenter", f"--net={NETNS_DIRECTORY / self.workload.name}", "--", *command]
        try:
            # A session of its own: Ctrl-C is the owner's to handle, who then ends its actors in order.
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    limit=LINE_LIMIT,
                )
        except FileNotFoundError as error:
            raise MissingFeature(
                f"{error.filename} is not installed", "apt-get install util-linux"
            ) from error
        await self.ask("hello")

    async def ask(self, order: str, **arguments: Any) -> Any:
        """Give an order and return its answer. EastwestError: it failed, or the actor is gone."""
        async with self._turn:
            line = await self._exchange({"do": order, **arguments})
        if not line:
            raise EastwestError(
                f"the traffic process of {self.workload.name} has ended", "see its message above"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise EastwestError(f"{self.workload.name}: {order} failed: {answer['error']}")
        return answer["ok"]

    async def _exchange(self, order: dict[str, Any]) -> bytes:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EastwestError(f"{self.workload.name} has not been started")
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
        try:
            return await asyncio.wait_for(process.stdout.readline(), self._deadline)
        except TimeoutError:
            raise EastwestError(f"{self.workload.name} does not answer to {order['do']!r}") from None

    async def report(self) -> ActorReport:
        return msgspec.convert(await self.ask("report"), ActorReport)

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        # It would end with its stdin, but not while it waits for an answer that is lost.
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
