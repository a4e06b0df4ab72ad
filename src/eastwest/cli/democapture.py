"""What the demo shows of packets: one tenant's, captured while traffic flows, as tshark sums them up."""

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from types import TracebackType
from typing import Self

EASTWEST = Path(sys.executable).with_name("eastwest")

_CAPTURE = "capture tenant=a --direction egress --max-bytes 20M -w"
"""Egress: what the tenant's workloads send to each other is there once. Of a copy at both ends tshark takes
each second for a retransmission, and for malformed where it puts a reply of HTTP together."""

_SECONDS = 20.0


class DemoCapture:
    """Captures while it is entered, where tshark is installed, as a user would."""

    def __init__(self, url: str, directory: Path) -> None:
        self._environment = os.environ | {"EASTWEST_URL": url}
        self._file = directory / "capture.pcapng"
        self._arguments = [*_CAPTURE.split(), str(self._file)]
        self._tshark = shutil.which("tshark")
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        if self._tshark:
            # A session of its own: Ctrl-C is the demo's.
            self._process = await asyncio.create_subprocess_exec(
                EASTWEST,
                *self._arguments,
                env=self._environment,
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=PIPE,
                start_new_session=True,
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def summary(self) -> list[str]:
        """End the capture; what it says of itself, and what tshark says of it."""
        if self._process is None or self._tshark is None:
            return ["no capture is shown: tshark is not installed; apt-get install tshark"]
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(_SECONDS):
                _, said = await self._process.communicate()
        except TimeoutError:
            return ["the capture does not end"]
        tshark = await asyncio.create_subprocess_exec(
            self._tshark, "-r", self._file, "-q", "-z", "io,phs", stdout=PIPE, stderr=DEVNULL
        )
        shown, _ = await tshark.communicate()
        heading = f"eastwest {_CAPTURE} capture.pcapng; tshark -r capture.pcapng -qz io,phs"
        lines = [*said.decode(errors="replace").splitlines(), *shown.decode(errors="replace").splitlines()]
        return ["", heading, *filter(None, lines), ""]
