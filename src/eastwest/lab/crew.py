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

DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""For what would outlive an owner that is killed: it does not end with its standard input."""

IN_CGROUP = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')
"""Followed by a cgroup's directory and a command."""


def command(workload: Guest | Group, slice_directory: Path) -> list[str]:
    """What runs the actor of a namespace or of a group of processes."""
    place: dict[str, Any] = {"sysctl": QUIET, "interface": GUEST_INTERFACE}
    if isinstance(workload, Group):
        place = {"cgroup": str(slice_directory / workload.directory)}
    actor = [sys.executable, "-I", "-S", str(SCRIPT), json.dumps(place)]
    if isinstance(workload, Group):
        return actor
    # Not `ip netns exec`: it remounts /sys, which hides cgroups.
    return ["nsenter", f"--net={NETNS_DIRECTORY / workload.name}", "--", *actor]


class Actor:
    """One workload's process, run by `command`; what goes wrong in it is in `log`."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        log: Path,
        deadline: float,
        environment: dict[str, str] | None = None,
        prompt: bytes = b"",
    ) -> None:
        """`prompt`: the line that says that it hears; empty: it does from the start."""
        self._prompt = prompt
        self._name = name
        self._command = command
        self._log = log
        self._deadline = deadline
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Returns when the process is in its place; it has no socket before."""
        await self.spawn()
        await self.settle()

    async def spawn(self) -> None:
        try:
            # A session of its own: Ctrl-C is the owner's to handle, who then ends its actors in order.
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    limit=LINE_LIMIT,
                    env=self._environment,
                )
        except FileNotFoundError as error:
            raise MissingFeature(
                f"{error.filename} is not installed", "apt-get install util-linux"
            ) from error

    async def settle(self, deadline: float = 0.0) -> None:
        """Wait until the process that was spawned is in its place."""
        try:
            async with asyncio.timeout(deadline or self._deadline):
                await self._until_prompt()
        except TimeoutError:
            raise EastwestError(f"{self._name} does not start", f"see {self._log}") from None
        await self._order("hello", {}, deadline or self._deadline)

    async def _until_prompt(self) -> None:
        """What is said before is for the log."""
        said = self._process.stdout if self._process else None
        while self._prompt and said and (line := await said.readline()).strip() != self._prompt:
            if not line:
                return
            self._note(line)

    def _note(self, line: bytes) -> None:
        with self._log.open("ab") as log:
            log.write(line)

    async def ask(self, order: str, **arguments: Any) -> Any:
        """Give an order and return its answer. EastwestError: it failed, or the actor is gone."""
        return await self._order(order, arguments, self._deadline)

    async def _order(self, order: str, arguments: dict[str, Any], deadline: float) -> Any:
        async with self._turn:
            line = await self._exchange({"do": order, **arguments}, deadline)
        if not line:
            said = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise EastwestError(f"the traffic process of {self._name} has ended: {said[-300:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise EastwestError(f"{self._name}: {order} failed: {answer['error']}")
        return answer["ok"]

    async def _exchange(self, order: dict[str, Any], deadline: float) -> bytes:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EastwestError(f"{self._name} has not been started")
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
        try:
            return await asyncio.wait_for(self._answer(process.stdout), deadline)
        except TimeoutError:
            raise EastwestError(f"{self._name} does not answer to {order['do']!r}") from None

    async def _answer(self, said: asyncio.StreamReader) -> bytes:
        """The next answer; on a VM's console others speak as well, which goes to the log."""
        while (line := await said.readline()) and not line.startswith(b"{"):
            self._note(line)
        return line

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
