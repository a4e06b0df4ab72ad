"""Keeps child processes running, and ends them in order.

A child is started with the capabilities it needs and no more, and the kernel kills it when the supervisor
dies, however that happens (PR_SET_PDEATHSIG): nothing is left running that nobody looks after. What a child
prints goes to its log file, of bounded size; its errors are repeated on stderr.
"""

import asyncio
import os
import re
import shutil
import signal
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from eastwest.cli.logfile import LogFile
from eastwest.errors import ConfigError

Say = Callable[[str], None]

_LINE_LIMIT = 1 << 16
_LAST_WORDS_SECONDS = 1.0
_MEND_SECONDS = 2.0
_SAY_SECONDS = 600.0
_SAID_KEPT = 16
_TROUBLE = re.compile(r" (?:WARNING|ERROR|CRITICAL) [\w.]+: (.*)|\[(?:ERR|FTL)\] (.*)|^eastwest: (.*)")
"""Lines worth repeating, and what of them: a role's log (cli.role), nats-server's, a role's last word."""


@dataclass(frozen=True)
class Stuck:
    """A state that a child does not leave by itself: it is started again once the reason is `over`."""

    said: str
    """By what in its output the state is known."""

    over: Callable[[], bool]


@dataclass(frozen=True)
class Child:
    """A process to keep running. `capabilities`: the only ones it may have, as setpriv(1) names them."""

    name: str
    command: Sequence[str]
    capabilities: Sequence[str] = ()
    stuck: Stuck | None = None


@dataclass(frozen=True)
class SupervisorConfig:
    """How patiently children are restarted and ended, and what their logs may take."""

    log_dir: Path
    log_max_bytes: int = 8 << 20
    first_delay: float = 0.5
    longest_delay: float = 30.0
    stop_seconds: float = 15.0


class Supervisor:
    """Starts its children in order when entered; ends them in the opposite order when left."""

    def __init__(self, config: SupervisorConfig, children: Sequence[Child], say: Say) -> None:
        self._config = config
        self._keepers = [_Keeper(config, child, say) for child in children]

    async def __aenter__(self) -> Self:
        self._config.log_dir.mkdir(parents=True, exist_ok=True)
        for keeper in self._keepers:
            keeper.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for keeper in reversed(self._keepers):
            await keeper.stop()

    def pids(self) -> dict[str, int]:
        """Process id of each child that runs now."""
        return {keeper.child.name: keeper.pid for keeper in self._keepers if keeper.pid is not None}


class _Keeper:
    """Keeps one child running."""

    def __init__(self, config: SupervisorConfig, child: Child, say: Say) -> None:
        self.child = child
        self._config = config
        self._say = say
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_line = ""
        self._said: dict[str, float] = {}
        self._stuck = False

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.child.name}")

    async def stop(self) -> None:
        """End the child: SIGTERM, and SIGKILL when it takes too long."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _keep(self) -> None:
        delay = self._config.first_delay
        while True:
            started = time.monotonic()
            await self._run_once()
            if time.monotonic() - started > self._config.longest_delay:
                delay = self._config.first_delay  # it had recovered
            self._say(f"{self.child.name} {self._ending()}; starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(2 * delay, self._config.longest_delay)

    async def _run_once(self) -> None:
        # A pipe of our own: asyncio's would make wait() wait for every process that inherited it.
        reading, writing = os.pipe()
        output = asyncio.create_task(self._copy_output(reading), name=f"log {self.child.name}")
        try:
            self._process = await self._start(writing)
        except OSError as error:
            self._process, self._last_line = None, str(error)
        finally:
            os.close(writing)
        self._stuck = False
        mending = asyncio.create_task(self._mend(), name=f"mend {self.child.name}")
        try:
            if self._process is not None:
                await self._process.wait()
        except asyncio.CancelledError:
            await self._end()
            raise
        finally:
            mending.cancel()
            await asyncio.wait((output,), timeout=_LAST_WORDS_SECONDS)
            output.cancel()

    async def _mend(self) -> None:
        """End the child where it is stuck and need not be any more; `_keep` starts it again."""
        stuck = self.child.stuck
        while stuck is not None:
            await asyncio.sleep(_MEND_SECONDS)
            if self._stuck and stuck.over():
                self._say(f"{self.child.name} is started again, as it cannot recover by itself")
                await self._end()
                return

    async def _start(self, output: int) -> Process:
        return await asyncio.create_subprocess_exec(
            *confined(self.child),
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
            # A group of its own: Ctrl-C reaches the supervisor alone, which ends children in order.
            process_group=0,
        )

    async def _copy_output(self, descriptor: int) -> None:
        reader = asyncio.StreamReader(limit=_LINE_LIMIT)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
        )
        path = self._config.log_dir / f"{self.child.name}.log"
        try:
            with LogFile(path, self._config.log_max_bytes) as log:
                while line := await _read_line(reader):
                    log.write(line)
                    self._heard(line.decode(errors="replace").strip())
        finally:
            transport.close()

    def _heard(self, line: str) -> None:
        self._last_line = line or self._last_line
        if self.child.stuck and self.child.stuck.said in line:
            self._stuck = True
        found = _TROUBLE.search(line)
        trouble = next(filter(None, found.groups()), "") if found else ""
        # A child that fails the same ways again and again says so from time to time.
        if trouble and time.monotonic() - self._said.get(trouble, -_SAY_SECONDS) >= _SAY_SECONDS:
            self._said = dict(list(self._said.items())[-_SAID_KEPT:]) | {trouble: time.monotonic()}
            self._say(f"{self.child.name}: {trouble}")

    async def _end(self) -> None:
        process = self._process
        assert process is not None
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes with the end.
            async with asyncio.timeout(self._config.stop_seconds):
                await process.wait()
        except TimeoutError:
            self._say(f"{self.child.name} did not end within {self._config.stop_seconds:g} s; killed")
            process.kill()
            await process.wait()

    def _ending(self) -> str:
        if self._process is None or self._process.returncode is None:
            return f"cannot be started ({self._last_line})"
        code = self._process.returncode
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        known = not self._last_line or any(self._last_line.endswith(said) for said in self._said)
        return f"ended with exit code {code}" + ("" if known else f" ({self._last_line})")


def confined(child: Child) -> list[str]:
    """The command line that starts a child with its capabilities only, and ties its life to ours."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ConfigError("setpriv is not there", "apt-get install util-linux")
    bounding = ",".join(["-all", *(f"+{name}" for name in child.capabilities)])
    return [
        setpriv,
        "--no-new-privs",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        f"--bounding-set={bounding}",
        "--pdeathsig=KILL",
        *child.command,
    ]


def _environment() -> dict[str, str]:
    # A child's settings are all in its file; ours from the environment are in it already.
    return {name: value for name, value in os.environ.items() if not name.startswith("EASTWEST_")}


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """The next line, cut where it is longer than the limit; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(max(1, error.consumed))
