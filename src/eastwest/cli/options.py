"""Options that several verbs take, with the environment variables that stand for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from eastwest.bus.taps import Direction

F = TypeVar("F", bound=Callable[..., Any])

config = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="EASTWEST_CONFIG",
    metavar="FILE",
    help="TOML file with settings.",
)
state_dir = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="EASTWEST_STATE_DIR",
    metavar="DIR",
    help="Where everything is kept.  [default: /var/lib/eastwest]",
)
segment = click.option(
    "--segment",
    is_flag=True,
    help="Copies as on the wire: super-packets cut, checksums finished. Costs CPU time.",
)
DIRECTIONS: tuple[str, ...] = get_args(Direction)
ANY_DIRECTION: Direction = "both"
direction = click.option(
    "--direction",
    type=click.Choice(DIRECTIONS),
    default=ANY_DIRECTION,
    help="Only what workloads receive (ingress), or send (egress).",
)
_LIMITS = (
    click.option("-c", "packets", type=click.IntRange(min=1), metavar="N", help="End after N packets."),
    click.option("--for", "lasts", metavar="TIME", help="End after so long: 30s, 5m, 2h."),
    click.option("--max-bytes", metavar="SIZE", help="End before the output is longer: 500, 10k, 10M, 2G."),
    click.option(
        "-w",
        "output",
        metavar="FILE",
        default="-",
        help="Where to write; - is standard output.  [default: -]",
    ),
)


def limits(command: F) -> F:
    """Where packets are written, and when it is enough."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


SEGMENT_PRICE = (
    "copies as on the wire: the hosts' CPUs cut super-packets and finish checksums for them, which takes "
    "CPU time from the workloads"
)
"""What `--segment` costs, in kind."""
listen = click.option(
    "--listen",
    envvar="EASTWEST_LISTEN",
    metavar="ADDR:PORT",
    help="Where the API is.  [default: 127.0.0.1:8470]",
)
