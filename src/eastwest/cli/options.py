"""Options that several verbs take, with the environment variables that stand for them."""

from pathlib import Path

import click

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
direction = click.option(
    "--direction",
    type=click.Choice(["ingress", "egress", "both"]),
    default="both",
    help="Only what workloads receive (ingress), or send (egress).",
)
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
