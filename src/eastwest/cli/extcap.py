"""`eastwest extcap`: workloads as interfaces in Wireshark and tshark, which call it by themselves.

What they ask and how it is answered: https://www.wireshark.org/docs/wsdg_html_chunked/ChCaptureExtcap.html
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from eastwest import __version__
from eastwest.cli import capture
from eastwest.cli.capturing import CaptureConfig
from eastwest.cli.client import Api, api_url
from eastwest.cli.options import ANY_DIRECTION, DIRECTIONS
from eastwest.cli.render import Row, printable
from eastwest.cli.tapstream import Brief
from eastwest.errors import EastwestError, RefusedError

SCRIPT = "eastwest"
_ANY = "eastwest"
"""The interface that asks for a selector."""

_FOLDER = re.compile(r"^(?:Personal )?extcap path:\s+(/.+)$", re.MULTILINE | re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_LINKS = {True: (1, "EN10MB", "Ethernet"), False: (101, "RAW", "Raw IP")}


@click.command("extcap")
@click.option("--install", is_flag=True, help="Have Wireshark find it, for this user.")
@click.option("--directory", type=click.Path(path_type=Path), metavar="DIR", help="Install there instead.")
@click.option("--extcap-interfaces", "interfaces", is_flag=True, hidden=True)
@click.option("--extcap-interface", "interface", default="", hidden=True)
@click.option("--extcap-dlts", "dlts", is_flag=True, hidden=True)
@click.option("--extcap-config", "config", is_flag=True, hidden=True)
@click.option("--extcap-version", hidden=True)
@click.option("--extcap-capture-filter", "text", default="", hidden=True)
@click.option("--capture", "capturing", is_flag=True, hidden=True)
@click.option("--fifo", default="", hidden=True)
@click.option("--selector", default="", hidden=True)
@click.option("--direction", type=click.Choice(DIRECTIONS), default=ANY_DIRECTION, hidden=True)
def command(**said: Any) -> None:
    """List workloads as interfaces in Wireshark and tshark.

    Wireshark has to run as a user who may read packets here: root, or one who has EASTWEST_TOKEN set.
    """
    if said["install"]:
        _install(said["directory"])
    elif said["interfaces"]:
        _list()
    elif said["dlts"]:
        _say_link(said["interface"])
    elif said["config"]:
        _say_settings(said["interface"])
    elif said["capturing"]:
        _capture(said["interface"], said["selector"], said["fifo"], said["text"], said["direction"])
    elif said["text"]:
        _check(said["text"])
    else:
        raise click.UsageError("Wireshark calls this; give --install")


def _install(directory: Path | None) -> None:
    where = directory or _folder()
    words = [sys.executable, "-P", "-m", "eastwest", "extcap"]
    url = os.environ.get("EASTWEST_URL")
    lines = [
        "#!/bin/sh",
        f"# Workloads of eastwest as interfaces: written by `eastwest {__version__} extcap`.",
    ]
    lines += [f"export EASTWEST_URL={shlex.quote(url)}"] if url else []
    lines += [f'exec {shlex.join(words)} "$@"', ""]
    script = where / SCRIPT
    try:
        where.mkdir(parents=True, exist_ok=True)
        script.write_text("\n".join(lines))
        script.chmod(0o755)
    except OSError as error:
        raise RefusedError(f"cannot write {script}: {error.strerror}", "correct --directory") from None
    click.echo(f"installed {script}; `tshark -D` lists workloads now")


def _folder() -> Path:
    """Where Wireshark looks for it; since 4.2 there is a place for each user."""
    for program in ("tshark", "wireshark"):
        if path := shutil.which(program):
            done = subprocess.run([path, "-G", "folders"], capture_output=True, text=True, check=False)
            if found := _FOLDER.search(done.stdout):
                return Path(found[1])
    return Path.home() / ".local/lib/wireshark/extcap"


def _workloads() -> dict[str, Row]:
    """Interface → workload. Names are not unique, and may be anything: then the label is in its stead."""
    with Api(timeout=5.0) as api:
        rows = api.get("workloads")
    names = [row["name"] for row in rows]
    return {
        f"{_ANY}-{row['name']}"
        if _PLAIN.fullmatch(row["name"]) and names.count(row["name"]) == 1
        else f"{_ANY}-label-{row['label']}": row
        for row in rows
    }


def _list() -> None:
    # No server, no workloads: no reason to keep Wireshark from starting.
    click.echo(f"extcap {{version={__version__}}}")
    try:
        found = _workloads()
    except EastwestError as error:
        click.echo(f"eastwest: {error}", err=True)
        return
    click.echo(f"interface {{value={_ANY}}}{{display=eastwest: workloads by selector}}")
    for interface, row in sorted(found.items()):
        facts = ", ".join(f"{key} {row[key]}" for key in ("tenant", "service", "host") if row[key])
        shown = _plain(f"eastwest: {row['name']} ({facts})")
        click.echo(f"interface {{value={interface}}}{{display={shown}}}")


def _plain(text: str) -> str:
    """What cannot be mistaken for a part of the answer."""
    return printable(text).replace("{", "(").replace("}", ")")


def _say_link(interface: str) -> None:
    row = None if interface == _ANY else _workloads().get(interface)
    number, name, words = _LINKS[row is None or bool(row["ports"])]
    click.echo(f"dlt {{number={number}}}{{name={name}}}{{display={words}}}")


def _say_settings(interface: str) -> None:
    if interface == _ANY:
        click.echo(
            "arg {number=0}{call=--selector}{display=Selector}{type=string}{default=name=*}{required=true}"
            "{tooltip=key=value, several with commas: tenant=a,service=web*}"
        )
    click.echo(
        "arg {number=1}{call=--direction}{display=Direction}{type=selector}{required=false}"
        "{tooltip=ingress: what the workload receives; egress: what it sends}"
    )
    for direction in DIRECTIONS:
        default = "true" if direction == ANY_DIRECTION else "false"
        click.echo(f"value {{arg=1}}{{value={direction}}}{{display={direction}}}{{default={default}}}")


def _check(text: str) -> None:
    """Says what is wrong with a filter, nothing where it is right."""
    from eastwest.tap.filter import check_text

    try:
        check_text(text)
    except EastwestError as error:
        click.echo(str(error))


def _capture(interface: str, selector: str, fifo: str, text: str, direction: str) -> None:
    if not fifo:
        raise click.UsageError("give --fifo")
    if interface != _ANY:
        row = _workloads().get(interface)
        if row is None:
            raise RefusedError(f"there is no workload for '{interface}'", "see: tshark -D")
        selector = f"label={row['label']}"
    order = capture.order(selector or "name=*", filter=text, direction=direction)
    if not capture.run(Brief(api_url(), order), CaptureConfig(), fifo, quiet=True):
        raise click.exceptions.Exit(1)
