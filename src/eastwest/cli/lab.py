"""`eastwest lab`: a topology with real traffic, in the background until it is taken down."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from eastwest.cli.client import Api
from eastwest.errors import EastwestError, MissingFeature, NotFoundError, RefusedError
from eastwest.lab import Lab, LabConfig, machine, podman
from eastwest.lab.control import Control, ask
from eastwest.lab.plan import Container, Group, Guest, Machine, Plan
from eastwest.lab.state import PODMAN, STATE_DIR, labs, load, refuse_unknown, take_down

METERED_SECONDS = 15.0
UP_SECONDS = 60.0

_STATE_DIR = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE_DIR,
    show_default=True,
    envvar="EASTWEST_LAB_STATE_DIR",
    help="Where labs write down what they made.",
)
_FULL = click.option("--full", is_flag=True, help="With 2 podman containers and a QEMU VM as well.")
_NAME = click.argument("name", default="")


def unmetered(plan: Plan, workloads: list[dict[str, object]]) -> list[str]:
    """The lab's workloads that eastwest does not list yet, or lists without their port."""
    listed = {row["name"]: bool(row["ports"]) for row in workloads}
    return [
        workload.name
        for workload in plan.workloads
        if workload.name not in listed or (isinstance(workload, Guest) and not listed[workload.name])
    ]


async def until_metered(plan: Plan, url: str | None = None, deadline: float = METERED_SECONDS) -> None:
    """Wait until eastwest lists all of the lab: what is sent from now on, it counts.

    RefusedError: no eastwest answers; EastwestError: it does, but does not list the lab within the deadline.
    """
    end = time.monotonic() + deadline
    with Api(url) as api:
        while missing := unmetered(plan, await asyncio.to_thread(api.get, "workloads")):
            if time.monotonic() > end:
                raise EastwestError(
                    f"eastwest does not list {', '.join(missing)}",
                    "see `eastwest doctor` and the probe's log",
                )
            await asyncio.sleep(0.1)


@click.group("lab")
def command() -> None:
    """Make or remove a ready-made topology with real traffic."""


@command.command()
@_NAME
@_STATE_DIR
@_FULL
def up(name: str, state_dir: Path, full: bool) -> None:
    """Make a lab and leave it running.

    It is called NAME, or gets a random name: two tenants with the same addresses on an Open vSwitch bridge,
    and two groups of processes on the host's network. Where eastwest runs, traffic starts once it lists them.
    """
    keep_it = [sys.executable, "-m", "eastwest", "lab", "keep", f"--state-dir={state_dir}"]
    keeper = subprocess.Popen(
        [*keep_it, *(["--full"] if full else []), *([name] if name else [])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert keeper.stdout is not None and keeper.stderr is not None
    with keeper.stdout as answer, keeper.stderr as complaint:
        try:
            made = answer.readline().decode().strip()
        except KeyboardInterrupt:
            # Not wanted after all; the keeper has a session of its own and did not see the Ctrl-C.
            keeper.terminate()
            raise
        if not made:
            click.echo(complaint.read(), err=True, nl=False)
            raise SystemExit(keeper.wait(UP_SECONDS))
    state = load(state_dir / made)
    if state is not None:
        show(state.plan, state_dir / made)


@command.command()
@_NAME
@_STATE_DIR
def down(name: str, state_dir: Path) -> None:
    """Remove a lab and all that it made.

    The lab NAME, or the only one there is; one half made or left behind, too.
    """
    chosen = choose(name, state_dir)
    asyncio.run(take_down(chosen, state_dir))
    click.echo(f"lab {chosen} is gone")


@command.command()
@_NAME
@_STATE_DIR
def pause(name: str, state_dir: Path) -> None:
    """Stop the traffic and print its record.

    Waits until all has arrived; what the senders recorded is one JSON document.
    """
    record = asyncio.run(ask(state_dir / choose(name, state_dir), "pause"))
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(record)) + b"\n")


@command.command()
@_NAME
@_STATE_DIR
def resume(name: str, state_dir: Path) -> None:
    """Let the traffic flow again."""
    asyncio.run(ask(state_dir / choose(name, state_dir), "resume"))


@command.command(hidden=True)
@_NAME
@_STATE_DIR
@_FULL
def keep(name: str, state_dir: Path, full: bool) -> None:
    """Make a lab, print its name, and keep it until SIGTERM: what `up` leaves running."""
    if full and (why := podman.lacking() or machine.lacking()):
        what, _, remedy = why.partition(": ")
        raise MissingFeature(what, remedy)
    config = LabConfig(name=name, alone=True, state_dir=state_dir, containers=full, machine=full)
    asyncio.run(_keep(config))


async def _keep(config: LabConfig) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with Lab(config) as lab, Control(lab):
        click.echo(lab.name)
        sys.stdout.flush()
        _detach(lab.directory / "log")
        traffic = asyncio.create_task(_start_traffic(lab))
        await ended.wait()
        traffic.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await traffic


async def _start_traffic(lab: Lab) -> None:
    try:
        await until_metered(lab.plan)
    except RefusedError:
        pass  # Nobody meters: the lab is for whoever looks at it.
    except EastwestError as error:
        print(error, file=sys.stderr)
    await lab.start()


def _detach(log: Path) -> None:
    """The terminal belongs to whoever called `up`, who is about to leave."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def choose(name: str, state_dir: Path) -> str:
    """The lab that is meant. RefusedError: it is not there, or there are several and no name is given."""
    if name:
        refuse_unknown(name, state_dir)
        return name
    names = labs(state_dir)
    if not names:
        raise NotFoundError("there is no lab", "make one with `eastwest lab up`")
    if len(names) > 1:
        raise RefusedError(f"there are several labs: {', '.join(names)}", "say which one")
    return names[0]


def show(plan: Plan, directory: Path) -> None:
    """What the lab in `directory` consists of, as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("workload", "tenant", "address", "port", "VLAN", "where"):
        table.add_column(title)
    for workload in plan.workloads:
        match workload:
            case Guest():
                cells = (workload.tenant, workload.address, workload.port, str(workload.tag), "namespace")
            case Container():
                cells = (workload.tenant, "127.0.0.1", "", "", "container")
            case Machine():
                cells = ("", "127.0.0.1", "", "", "QEMU, user-mode network")
            case Group():
                cells = ("", "127.0.0.1", "", "", workload.directory)
        table.add_row(workload.name, *cells)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if plan.containers:
        socket = podman.Podman(directory / PODMAN, plan).socket
        console.print(
            f"""eastwest knows the containers' names with: [inventory] podman = "{socket}\"""", markup=False
        )
    console.print(f"Bridge {plan.bridge}. Remove all of it: eastwest lab down {plan.name}")
