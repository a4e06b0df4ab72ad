"""`eastwest tap`: standing orders to copy packets."""

from typing import Any
from urllib.parse import quote

import click

from eastwest.cli import options
from eastwest.cli.capture import enough, run
from eastwest.cli.client import Api, api_url
from eastwest.cli.options import SEGMENT_PRICE
from eastwest.cli.render import Column, Row, field, number, printable, show_json, show_table
from eastwest.cli.tapstream import Standing
from eastwest.cli.units import clock, count
from eastwest.labels.selector import Selector


@click.group("tap")
def command() -> None:
    """Have packets of workloads copied, to this server's files or to an application."""


@command.command("add")
@click.argument("name")
@click.argument("selector")
@click.option("-f", "--filter", "text", default="", metavar="FILTER", help="pcap-filter(7), as for tcpdump.")
@click.option(
    "--for", "lasts", default="1h", metavar="TIME", help="30s, 5m, 2h, 1d or forever.  [default: 1h]"
)
@click.option(
    "--to", metavar="HOST:PORT", help="An application that takes pcapng; else this server collects."
)
@click.option("--tls", is_flag=True, help="Speak TLS to the application.")
@click.option("--no-store", is_flag=True, help="Keep no files: only for who reads it now.")
@click.option("-s", "snaplen", type=click.IntRange(min=0), default=0, metavar="BYTES", help="Of each packet.")
@options.direction
@options.segment
@click.option("--payload", default="", metavar="PATTERN", help="Bytes that the payload holds: 474554@0.")
@click.option("--service-id", type=click.IntRange(0, (1 << 32) - 1), metavar="N", help="What copies carry.")
def add(name: str, selector: str, **said: Any) -> None:
    """Copy packets of workloads that SELECTOR chooses, those there are and those to come.

    The same again: for another time.
    """
    Selector.parse(selector)  # refuse here what the server would refuse
    document = {"name": name, "selector": selector, "filter": said["text"], "for": said["lasts"]}
    same = ("direction", "payload", "snaplen", "segment", "service_id", "to", "tls")
    document |= {key: said[key] for key in same}
    with Api() as api:
        tap = api.post("taps", document | {"store": not said["no_store"]})
    click.echo(printable(f"tap {name}: {tap['workloads']} workloads now, to {_where(tap)}{_until(tap)}"))
    if said["segment"]:
        click.echo(SEGMENT_PRICE)


def _where(tap: Row) -> str:
    if tap["receiver"] == "application":
        return str(tap["to"])
    return "files of the server" if tap["store"] else "who reads it at the server"


def _until(tap: Row) -> str:
    return f", until {clock(tap['expires'])}" if tap["expires"] else ""


@command.command("read")
@click.argument("name")
@options.limits
def read(name: str, **said: Any) -> None:
    """Write the packets of a tap from now on, as one pcapng stream; the tap goes on when this ends.

    \b
    eastwest tap read web | tshark -r -
    """
    if not run(Standing(api_url(), name), enough(said), said["output"]):
        raise click.exceptions.Exit(1)


@command.command("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Copy nothing any more by this order. Files stay."""
    with Api() as api:
        api.delete(f"taps/{quote(name, safe='')}")
    click.echo(printable(f"tap {name} is removed"))


def _lost(row: Row) -> str:
    return ", ".join(f"{place} {packets:,}" for place, packets in row["lost"].items())


COLUMNS = (
    Column("name", field("name")),
    Column("workloads", field("selector"), keep=False),
    Column("filter", field("filter"), keep=False, drop="empty"),
    Column("direction", field("direction"), drop="same"),
    Column("to", _where, keep=False),
    Column("ports", lambda row: str(sum(host["points"] for host in row["hosts"])), "right"),
    Column("hosts", lambda row: str(sum(host["points"] > 0 for host in row["hosts"])), "right", drop="same"),
    Column("matched", number("matched", count), "right"),
    Column("delivered", number("delivered", count), "right"),
    Column("lost", _lost, keep=False, drop="empty"),
    Column("expires", lambda row: clock(row["expires"]) if row["expires"] else "never"),
    Column("pcap over IP", field("pcap_over_ip"), drop="empty"),
)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(as_json: bool) -> None:
    """Show the taps, and what became of them on all hosts."""
    show(as_json)


def show(as_json: bool) -> None:
    """The list of taps on stdout."""
    with Api() as api:
        rows = api.get("taps")
    if as_json:
        show_json(rows)
        return
    show_table(COLUMNS, rows, "no taps; see: eastwest tap add --help", _style)
    for row in rows:
        for host in row["hosts"]:
            for problem in (*host["refused"], *([host["problem"]] if host["problem"] else [])):
                click.echo(printable(f"{row['name']}: {host['host']}: {problem}"))


def _style(row: Row) -> str:
    return "bold red" if any(host["refused"] or host["problem"] for host in row["hosts"]) else ""
