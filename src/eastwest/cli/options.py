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
listen = click.option(
    "--listen",
    envvar="EASTWEST_LISTEN",
    metavar="ADDR:PORT",
    help="Where the API is.  [default: 127.0.0.1:8470]",
)
