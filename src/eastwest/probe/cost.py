"""What the probe itself takes: CPU, memory, and nanoseconds per packet of each kernel program."""

import asyncio
import logging
import resource
import time
from itertools import chain, repeat
from pathlib import Path

from eastwest.bus.messages import Cost, ProgramCost
from eastwest.errors import KernelError
from eastwest.kernel import stats

log = logging.getLogger(__name__)

_SAMPLE_SECONDS = 1.0
_PAUSE_SECONDS = 59.0
_FIRST_PAUSES = (3.0, 8.0, 8.0, 8.0)


class CostMeter:
    """Samples the programs for one second a minute: the statistics themselves cost two clocks a packet.

    In the first half minute it looks more often, for whoever is just trying it.
    """

    def __init__(self, programs: dict[str, int]) -> None:
        self._programs = programs
        self._costs: list[ProgramCost] = []
        self._sampled_at = 0
        self._last = (time.monotonic(), _cpu_seconds())

    async def sample_for_ever(self) -> None:
        """Run as a task."""
        for pause in chain(_FIRST_PAUSES, repeat(_PAUSE_SECONDS)):
            await asyncio.sleep(pause)
            try:
                await self._sample()
            except KernelError as e:
                log.warning("%s", e)

    async def _sample(self) -> None:
        switch = stats.enable()
        try:
            before = {name: stats.run_time(program) for name, program in self._programs.items()}
            await asyncio.sleep(_SAMPLE_SECONDS)
            after = {name: stats.run_time(program) for name, program in self._programs.items()}
        finally:
            stats.disable(switch)
        self._sampled_at = time.time_ns()
        self._costs = []
        for name, end in after.items():
            runs = end.runs - before[name].runs
            spent = end.nanoseconds - before[name].nanoseconds
            self._costs.append(ProgramCost(name, runs, round(spent / runs, 1) if runs else 0.0))

    def cost(self) -> Cost:
        """CPU percent since the last call, of one core; resident memory now; the last sample."""
        then, used_then = self._last
        now, used = self._last = (time.monotonic(), _cpu_seconds())
        percent = 100 * (used - used_then) / max(now - then, 1e-9)
        return Cost(round(percent, 2), _resident_bytes(), self._costs, self._sampled_at)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
