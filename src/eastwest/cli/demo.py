"""`eastwest demo`: eastwest and a lab side by side, and every figure shown compared with the senders' record.

It does what a user would, by the same commands, in a state directory and at a port of its own; and it leaves
nothing behind, however it ends.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.text import Text

from eastwest.cli.client import Api
from eastwest.cli.democapture import EASTWEST, DemoCapture
from eastwest.cli.lab import until_metered
from eastwest.errors import EastwestError, MissingPrivilege, RefusedError
from eastwest.lab import Lab, LabConfig, Record, machine, podman
from eastwest.lab.plan import Plan, random_name
from eastwest.lab.report import show
from eastwest.lab.verdict import Owner, Verdict, judge

READY_SECONDS = 60.0
METERED_SECONDS = 45.0
SETTLE_SECONDS = 30.0
TRAFFIC_SECONDS = 15
FLOW_LIMIT = 1_000_000

SERVICES = {"a": ("shop", 7), "b": ("bank", 8)}
"""Tenant → what its workloads belong to, in the demo's rules."""


class DemoConfig(msgspec.Struct, frozen=True):
    """`watch`: on a terminal, `eastwest top` until q; otherwise traffic for `seconds`.

    `plain`: no containers and no VM, even where their packages are installed.
    """

    watch: bool
    seconds: int
    plain: bool


@click.command("demo")
@click.option(
    "--seconds",
    type=click.IntRange(min=1),
    default=TRAFFIC_SECONDS,
    show_default=True,
    help="How long traffic flows when there is no terminal to watch it on.",
)
@click.option("--plain", is_flag=True, help="No podman containers and no VM: what needs no more packages.")
def command(seconds: int, plain: bool) -> None:
    """Show labelled traffic of a lab, and compare every figure with what its senders recorded."""
    if os.geteuid() != 0:
        raise MissingPrivilege("the demo loads BPF programs and makes namespaces", "run as root")
    watch = sys.stdin.isatty() and sys.stdout.isatty()
    if not asyncio.run(_interruptible(Demo(DemoConfig(watch, seconds, plain)))):
        raise SystemExit(1)


async def _interruptible(demo: "Demo") -> bool:
    """Run the demo; the first Ctrl-C or SIGTERM ends it in order, a second one must not disturb that."""
    task = asyncio.ensure_future(demo.run())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise click.Abort from None


class Demo:
    """One run of the demonstration."""

    def __init__(self, config: DemoConfig) -> None:
        self._config = config
        self._directory = Path()
        self._url = ""
        self._up: asyncio.subprocess.Process | None = None
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            # A log is read by people, too: wide enough that no figure is cut.
            self.console = Console(highlight=False, width=140)

    async def run(self) -> bool:
        """Whether every figure agreed. EastwestError: it could not be shown at all."""
        async with AsyncExitStack() as stack:
            self._directory = Path(tempfile.mkdtemp(prefix="eastwest-demo-"))
            stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            config = self._choose()
            stack.push_async_callback(self._stop)
            # The VM boots while eastwest starts.
            await self._start(Lab(config))
            lab = await self._make_lab(stack, config)
            await self._until_ready()
            await until_metered(lab.plan, self._url, METERED_SECONDS)
            self._say("eastwest meters all of it; traffic starts")
            capture = await stack.enter_async_context(DemoCapture(self._url, self._directory))
            started = datetime.now(UTC)
            await lab.start()
            await self._watch()
            self._say("senders pause; waiting until all that they sent has arrived and is stored")
            record = await lab.pause()
            verdict = await self._settle(lab.plan, record, started - timedelta(seconds=10))
            for text in await capture.summary():
                self.console.print(Text(text), soft_wrap=True)
            show(self.console, verdict, await self._ask("hosts"), await self._health())
            return not verdict.differences

    # ---- the lab

    def _choose(self) -> LabConfig:
        """A lab with whatever can be had here; what cannot, is said."""
        lacking = {"podman containers": podman.lacking(), "a QEMU VM": machine.lacking()}
        for what, why in lacking.items():
            if why and not self._config.plain:
                self._say(f"without {what}: {why}")
        containers, vm = (not why and not self._config.plain for why in lacking.values())
        return LabConfig(random_name(), containers=containers, machine=vm)

    async def _make_lab(self, stack: AsyncExitStack, config: LabConfig) -> Lab:
        try:
            return await self._enter(stack, Lab(config))
        except EastwestError as error:
            if not (config.containers or config.machine):
                raise
            # What is only there to be shown as well must not keep the rest from being shown.
            self._say(f"without podman containers and a QEMU VM, since this lab failed: {error}")
            return await self._enter(stack, Lab(LabConfig(config.name)))

    async def _enter(self, stack: AsyncExitStack, lab: Lab) -> Lab:
        parts = ["2 tenants with the same addresses", "2 groups behind the host's address"]
        parts += ["2 podman containers"] if lab.plan.containers else []
        parts += ["a QEMU VM"] if lab.plan.machines else []
        self._say(f"making lab {lab.name}: {', '.join(parts)}")
        return await stack.enter_async_context(lab)

    # ---- eastwest itself

    async def _start(self, lab: Lab) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        config = self._directory / "eastwest.toml"
        config.write_text(settings(lab))
        arguments = [
            "--state-dir",
            str(self._state),
            "--listen",
            f"127.0.0.1:{port}",
            "--config",
            str(config),
        ]
        self._say(f"eastwest up {' '.join(arguments)}")
        log = (self._directory / "up.log").open("wb")
        with log:
            # A session of its own: Ctrl-C is ours, and `eastwest down` ends it in order.
            self._up = await asyncio.create_subprocess_exec(
                EASTWEST,
                "up",
                *arguments,
                stdout=log,
                stderr=log,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )

    async def _until_ready(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + READY_SECONDS
        with Api(self._url, timeout=5.0) as api:
            while self._up is not None and self._up.returncode is None and loop.time() < end:
                with suppress(RefusedError):
                    if any(host["alive"] for host in await asyncio.to_thread(api.get, "hosts")):
                        return
                await asyncio.sleep(0.2)
        raise EastwestError(f"eastwest up is not ready: {self._last_words()}", "see `eastwest doctor`")

    async def _stop(self) -> None:
        if self._up is None:
            return
        down = await asyncio.create_subprocess_exec(
            EASTWEST, "down", "--purge", "--state-dir", str(self._state), stdout=asyncio.subprocess.DEVNULL
        )
        await down.wait()
        if self._up.returncode is None and down.returncode:
            self._up.terminate()
        await self._up.wait()

    def _last_words(self) -> str:
        lines = (self._directory / "up.log").read_text(errors="replace").split("\n")
        return " ".join(lines[-4:]).strip() or "it says nothing"

    @property
    def _state(self) -> Path:
        return self._directory / "state"

    async def _ask(self, *arguments: str) -> list[dict[str, Any]]:
        """The JSON document of a listing verb, asked as a script would."""
        process = await asyncio.create_subprocess_exec(
            EASTWEST,
            *arguments,
            "--json",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"EASTWEST_URL": self._url},
        )
        out, err = await process.communicate()
        if process.returncode:
            raise EastwestError(f"`eastwest {arguments[0]}` failed: {err.decode(errors='replace').strip()}")
        document: list[dict[str, Any]] = json.loads(out)
        return document

    async def _health(self) -> dict[str, Any]:
        with Api(self._url) as api:
            health: dict[str, Any] = await asyncio.to_thread(api.get, "health")
            return health

    # ---- what is seen

    async def _watch(self) -> None:
        if self._config.watch:
            self._say("live view; press q to compare its figures with the senders'")
            top = await asyncio.create_subprocess_exec(
                EASTWEST, "top", env=os.environ | {"EASTWEST_URL": self._url}
            )
            await top.wait()
            return
        for second in range(0, self._config.seconds, 5):
            self._say(f"traffic has been flowing for {second} s of {self._config.seconds} s")
            await asyncio.sleep(min(5, self._config.seconds - second))

    async def _settle(self, plan: Plan, record: Record, since: datetime) -> Verdict:
        """Read until all agrees, or until it should have long ago: then with its differences."""
        owners = {guest.name: Owner(guest.tenant, SERVICES[guest.tenant][0]) for guest in plan.guests}
        owners |= {one.name: Owner(one.tenant, one.service) for one in plan.containers}
        loop = asyncio.get_running_loop()
        end = loop.time() + SETTLE_SECONDS
        flows = ("flows", "--since", since.isoformat(), "--limit", str(FLOW_LIMIT))
        while True:
            ledger = await self._ask("ledger")
            labels = await self._ask("labels")
            verdict = judge(record, owners, labels, await self._ask(*flows), ledger)
            if not verdict.differences or loop.time() > end:
                return verdict

    def _say(self, text: str) -> None:
        self.console.print(f"[dim]{datetime.now().astimezone():%H:%M:%S}[/dim] {text}", soft_wrap=True)


def settings(lab: Lab) -> str:
    """The demo's settings: whom to ask for containers, and who the lab's other workloads belong to."""
    plan = lab.plan
    text = f'[inventory]\npodman = "{lab.podman.socket}"\n\n' if plan.containers else ""
    for tenant, (service, number) in SERVICES.items():
        text += f'[[rule]]\nmatch = "name={plan.name}-{tenant}*"\ntenant = "{tenant}"\n'
        text += f'service = "{service}"\nservice_id = {number}\n\n'
    return text
