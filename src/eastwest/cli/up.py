"""`eastwest up`: every role on this host, supervised, until stopped."""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eastwest.cli import options
from eastwest.cli.lock import StateLock
from eastwest.cli.server import load
from eastwest.cli.supervisor import Supervisor, SupervisorConfig
from eastwest.errors import EastwestError, MissingPrivilege

if TYPE_CHECKING:
    from eastwest.cli.deploy import Deployment

READY_SECONDS = 30.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class UpConfig:
    """`seconds`: how long to run once ready; None for until stopped."""

    lab: bool
    seconds: float | None


@click.command("up")
@click.option("--lab", is_flag=True, help="With a lab: workloads with real traffic, removed at the end.")
@click.option(
    "--for", "seconds", type=click.FloatRange(min=0), metavar="SECONDS", help="End SECONDS after being ready."
)
@options.state_dir
@options.listen
@options.config
def command(
    lab: bool, seconds: float | None, state_dir: Path | None, listen: str | None, config_file: Path | None
) -> None:
    """Run nats-server, server and probe on this host until stopped.

    When it ends, counting in the kernel goes on, and the next `up` takes it over; `eastwest down` ends it.
    """
    if os.geteuid() != 0:
        raise MissingPrivilege("eastwest up loads BPF programs, which needs root", "run it with sudo")
    settings = load(config_file, state_dir, listen)
    from eastwest.cli.deploy import deploy  # needs the packages that load() has asked for

    state_dir = settings.probe.state_dir
    with StateLock(state_dir):
        deployment = deploy(settings)
        say(f"starting eastwest in {state_dir} …")
        try:
            asyncio.run(_up(UpConfig(lab, seconds), deployment))
        finally:
            deployment.forget_key()
        say("stopped; counting goes on in the kernel, `eastwest down` ends it")


async def _up(config: UpConfig, deployment: "Deployment") -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    supervisor = Supervisor(SupervisorConfig(log_dir=deployment.log_dir), deployment.children, say)
    running = asyncio.create_task(_run(config, deployment, supervisor))
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stopped.is_set():
        running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise


async def _run(config: UpConfig, deployment: "Deployment", supervisor: Supervisor) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(supervisor)
        ready = await _until_ready(deployment, patient=config.seconds is None)
        if config.lab:
            await _enter_lab(stack, deployment)
        if ready:
            print(f"eastwest is ready: {deployment.url}  (API; described at /openapi.json)", flush=True)
        await asyncio.sleep(config.seconds) if config.seconds is not None else await asyncio.Event().wait()
        if not ready:
            raise EastwestError("eastwest never became ready", f"see {deployment.log_dir}")


async def _enter_lab(stack: AsyncExitStack, deployment: "Deployment") -> None:
    from eastwest.cli.lab import until_metered
    from eastwest.lab import Lab, LabConfig
    from eastwest.lab.control import Control

    try:
        lab = await stack.enter_async_context(Lab(LabConfig()))
        await stack.enter_async_context(Control(lab))
        await until_metered(lab.plan, deployment.url)
        await lab.start()
    except EastwestError as error:
        say(f"no lab: {error}")


async def _until_ready(deployment: "Deployment", patient: bool) -> bool:
    """Wait until the server answers and has this host's report; after a while say what is missing, once.

    False where one who is not patient (who has said how long to run) need not wait longer.
    """
    from eastwest.cli.ready import Readiness

    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_SECONDS
    said = False
    async with Readiness(deployment) as readiness:
        while what := await readiness.missing():
            if not said and loop.time() > deadline:
                say(f"not ready after {READY_SECONDS:g} s: {what}; see {deployment.log_dir}. Going on")
                said = True
                if not patient:
                    return False
            await asyncio.sleep(_POLL_SECONDS)
    return True


def say(text: str) -> None:
    """One line on stderr."""
    line = " ".join(text.split())
    print(f"eastwest: {line}", file=sys.stderr, flush=True)
