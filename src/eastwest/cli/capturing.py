"""One capture: what is read of a tap and written, to the last packet that is wanted."""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from eastwest.cli.output import Output
from eastwest.cli.render import Row, printable
from eastwest.cli.tapstream import Standing
from eastwest.cli.units import octets
from eastwest.errors import RefusedError
from eastwest.kernel.blocks import ALL, Stop, Walk, Walker

WATCH_SECONDS = 0.5
TAKE_SECONDS = 3.0
DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class CaptureConfig:
    """When it is enough, None for never."""

    packets: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    wait: bool = True
    """Whether to wait where no workload is selected now."""


@dataclass
class Counts:
    """What became of the packets that came here: got = written + beyond + untaken."""

    written: int = 0
    written_bytes: int = 0
    """Of the packets as they were on the wire."""
    file_bytes: int = 0
    beyond: int = 0
    """Those that were under way when it was enough."""
    untaken: int = 0
    """Those that nobody took: the reader of the output had gone, or did not read."""

    @property
    def got(self) -> int:
        return self.written + self.beyond + self.untaken


@dataclass
class Outcome:
    """How a capture ended. `ledger`: what the probes say of it, None where it is not known."""

    counts: Counts
    why: str
    failed: bool
    seconds: float
    ledger: Row | None = None


class Taken(NamedTuple):
    """What of a stream is to be written next, its packets and their bytes; and packets that are not."""

    data: memoryview
    packets: int
    bytes: int
    beyond: int


class Cut:
    """Finds in a stream how far it is to be written, by packets or bytes; counts what it passes."""

    def __init__(self, packets: int | None, size: int | None) -> None:
        self._packets = ALL if packets is None else packets
        self._room = ALL if size is None else size
        self._walker = Walker()
        self._rest = b""
        self.full = False

    def take(self, chunk: bytes) -> Taken:
        """The next part of the stream; bytes are held back until their block is whole. Raises Malformed."""
        data = self._rest + chunk
        if self.full:
            return self._count(data, Walk(0, 0, 0, Stop.ENOUGH, 0))
        # A block that is not whole within the room there is would be too much, however long it is.
        walk = self._walker.pass_over(data, 0, min(len(data), self._room), self._packets)
        self.full = walk.stop is Stop.ENOUGH or len(data) > self._room
        self._packets -= walk.packets
        self._room -= walk.end
        if self.full:
            return self._count(data, walk)
        self._rest = data[walk.end :]
        return Taken(memoryview(data)[: walk.end], walk.packets, walk.bytes, 0)

    def _count(self, data: bytes, before: Walk) -> Taken:
        walk = self._walker.pass_over(data, before.end, len(data))
        self._rest = data[walk.end :]
        return Taken(memoryview(data)[: before.end], before.packets, before.bytes, walk.packets)


class Capture:
    """Reads one tap into one output. `say`: a line for the person; `show`: the counters as they are now."""

    def __init__(
        self, config: CaptureConfig, tap: Standing, say: Callable[[str], None], show: Callable[[str], None]
    ) -> None:
        self._config = config
        self._tap = tap
        self._say, self._show = say, show
        self._cut = Cut(config.packets, config.bytes)
        self._counts = Counts()
        self._why = ""
        self._failed = False
        self._said: set[str] = set()
        self._status: Row = {"hosts": [], "matched": 0, "lost": {}}
        self._deadline: asyncio.Timeout | None = None
        self._ending: asyncio.Task[None] | None = None
        self._writing: asyncio.Timeout | None = None
        self._last_word: float | None = None
        """Until when the reader of the output may take what is left."""

    async def run(self, output: Output) -> Outcome:
        """Until it is enough, or told to end. Raises RefusedError where nothing could be captured."""
        self._listen_to_signals()
        async with self._tap:
            if not self._tap.workloads:
                self._nobody()
            if overwritten := output.begin():
                self._say(overwritten)
            start = time.monotonic()
            watching = asyncio.create_task(self._watch(output, start))
            try:
                await self._read_on(output)
            finally:
                watching.cancel()
            seconds = time.monotonic() - start
            await self._tap.remove()
            ledger = await self._tap.ledger()
        return Outcome(self._counts, self._why, self._failed, seconds, ledger)

    async def _read_on(self, output: Output) -> None:
        try:
            async with asyncio.timeout(None) as self._deadline:
                if self._why:  # told to end before there was anything
                    self._stop()
                await self._read(output)
        except TimeoutError:
            if self._tap.ours:
                self._say(f"what is under way did not come within {DRAIN_SECONDS:g} s")
        finally:
            self._deadline = None

    def _nobody(self) -> None:
        selector = self._tap.selector
        if not self._config.wait:
            raise RefusedError(f"no workload matches '{selector}' now", "see: eastwest workloads")
        self._say(f"no workload matches '{selector}' now; waiting for one to come")

    def end(self, why: str, failed: bool = False) -> None:
        """Have the tap removed and read what is under way; the first reason counts."""
        if not self._why:
            self._why, self._failed = why, failed
            self._stop()

    def _stop(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._deadline is not None and self._tap.ours:
            self._ending = asyncio.create_task(self._tap.remove())
            self._deadline.reschedule(now + DRAIN_SECONDS)
        elif self._deadline is not None and self._writing is None:
            # Others go on with it: nothing is under way. What is being written is written whole.
            self._deadline.reschedule(now)
        self._last_word = now + TAKE_SECONDS
        if self._writing is not None:
            self._writing.reschedule(self._last_word)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def told() -> None:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)  # again: at once
            self.end("told to end")

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, told)

    # -- packets ---------------------------------------------------------------------------------------------

    async def _read(self, output: Output) -> None:
        gone = False
        try:
            async with aclosing(self._tap.packets()) as packets:
                async for chunk in packets:
                    taken = self._cut.take(chunk)
                    self._counts.beyond += taken.beyond
                    if gone:
                        self._counts.untaken += taken.packets
                    elif taken.data:
                        gone = not await self._write(output, taken)
                    if self._cut.full:
                        self.end("enough")
                    if self._why and not self._tap.ours:
                        return
        except RefusedError as error:
            if not self._counts.got:
                raise
            self.end(str(error), failed=True)
        if not self._why:
            self.end("the tap was removed by somebody else, or has expired", failed=self._tap.ours)

    async def _write(self, output: Output, taken: Taken) -> bool:
        """Whether somebody took them."""
        counts = self._counts
        counts.untaken += taken.packets  # until all of them are written
        try:
            async with asyncio.timeout_at(self._last_word) as self._writing:
                await output.write(taken.data)
        except TimeoutError:
            return False  # it does not read: the rest is only counted
        except BrokenPipeError:
            self.end("nobody reads the output any more", failed=True)
            return False
        except RefusedError as error:
            self.end(str(error), failed=True)
            return False
        finally:
            self._writing = None
        counts.untaken -= taken.packets
        counts.written += taken.packets
        counts.written_bytes += taken.bytes
        counts.file_bytes += len(taken.data)
        return True

    # -- what a person sees ----------------------------------------------------------------------------------

    async def _watch(self, output: Output, start: float) -> None:
        while True:
            if self._config.seconds is not None and time.monotonic() - start >= self._config.seconds:
                self.end("the time is over")
            if output.abandoned():
                self.end("nobody reads the output any more", failed=True)
            if not self._why:
                self._learn(await self._tap.status())
            self._show(progress(self._counts, self._status, time.monotonic() - start))
            await asyncio.sleep(WATCH_SECONDS)

    def _learn(self, status: Row | None) -> None:
        if status is None:
            return
        self._status = status
        points = sum(host["points"] for host in status["hosts"])
        ready = [host for host in status["hosts"] if host["points"] and host["connected"]]
        if ready:
            self._once("capturing", f"capturing: {what(points, 'port or cgroup', 'ports and cgroups')} "
                       f"on {what(len(ready), 'host', 'hosts')}")  # fmt: skip
        refused = [reason for host in status["hosts"] for reason in host["refused"]]
        for host in status["hosts"]:
            for problem in (*host["refused"], *([host["problem"]] if host["problem"] else [])):
                self._once(problem, f"{host['host']}: {problem}")
        if refused and not points and self._tap.ours:
            self.end("nothing can be copied", failed=True)

    def _once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._say(printable(text))


def what(number: int, one: str, many: str) -> str:
    """1 host, 2 hosts."""
    return f"{number:,} {one if number == 1 else many}"


def progress(counts: Counts, status: Row, seconds: float) -> str:
    """The counters as they are now, in a line."""
    lost = sum(status["lost"].values())
    clock = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    matched = max(status["matched"], counts.got)
    written = f"{what(counts.written, 'packet', 'packets')}, {octets(counts.file_bytes)} written"
    return f"{clock}  {written}; {matched:,} matched, {lost:,} lost"
