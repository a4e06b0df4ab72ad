"""`eastwest capture`: packets of workloads, live, wherever they run."""

import asyncio
import secrets
import sys
from typing import Any

import click

from eastwest.cli import options
from eastwest.cli.capturing import Capture, CaptureConfig, Counts, Outcome, what
from eastwest.cli.client import api_url
from eastwest.cli.options import SEGMENT_PRICE
from eastwest.cli.output import STDOUT, Output
from eastwest.cli.render import Row
from eastwest.cli.units import octets, size
from eastwest.labels.selector import Selector
from eastwest.manager.times import duration

_ORDERED = ("filter", "direction", "payload", "snaplen", "segment")


@click.command("capture")
@click.argument("selector")
@click.option("-f", "--filter", default="", metavar="FILTER", help="pcap-filter(7), as for tcpdump.")
@click.option("-c", "packets", type=click.IntRange(min=1), metavar="N", help="End after N packets.")
@click.option("--for", "lasts", metavar="TIME", help="End after so long: 30s, 5m, 2h.")
@click.option("--max-bytes", metavar="SIZE", help="End before the output is longer: 500, 10k, 10M, 2G.")
@click.option(
    "-w", "output", metavar="FILE", default=STDOUT, help="Where to write; - is standard output.  [default: -]"
)
@click.option(
    "-s", "snaplen", type=click.IntRange(min=0), default=0, metavar="BYTES", help="Of each packet, the first."
)
@options.direction
@options.segment
@click.option("--payload", default="", metavar="PATTERN", help="Bytes that the payload holds.")
@click.option("--no-wait", is_flag=True, help="Refuse a selector that selects nothing now.")
def command(selector: str, **said: Any) -> None:
    """Write packets of the workloads that SELECTOR chooses, on all hosts, as one pcapng stream.

    It follows workloads as they come and go, until Ctrl-C. PATTERN is hexadecimal, with @OFFSET or <WITHIN
    behind it where the place matters: 474554@0.

    \b
    eastwest capture name=web -f 'tcp port 80' | tshark -r -
    eastwest capture tenant=a -c 1000 -w a.pcapng
    """
    Selector.parse(selector)  # refuse here what the server would refuse
    config = CaptureConfig(
        order=order(selector, **{key: said[key] for key in _ORDERED}),
        packets=said["packets"],
        bytes=size(said["max_bytes"]) if said["max_bytes"] else None,
        seconds=seconds(said["lasts"]) if said["lasts"] else None,
        wait=not said["no_wait"],
    )
    if said["segment"]:
        Line().say(SEGMENT_PRICE)
    if not run(config, said["output"]):
        raise click.exceptions.Exit(1)


def order(selector: str, **said: Any) -> Row:
    """What the API is told: a tap with a name of its own."""
    return {"name": f"capture-{secrets.token_hex(4)}", "selector": selector, **said}


def seconds(text: str) -> float:
    """A length of time; a number alone is seconds. Raises RefusedError."""
    return duration(f"{text}s" if text.isdecimal() else text)


def run(config: CaptureConfig, name: str, quiet: bool = False) -> bool:
    """Capture, and say how it ended: False where that was not as asked. Raises RefusedError, UsageError.

    `quiet`: say only what is wrong.
    """
    line = Line()
    told = line.say if not quiet else lambda _: None
    with Output(name) as output:
        outcome = asyncio.run(Capture(config, api_url(), told, line.show).run(output))
    if outcome.failed:
        line.say(outcome.why)
    for text in summary(outcome):
        told(text)
    return not outcome.failed


class Line:
    """What a person sees on stderr: lines, and below them, on a terminal, one that changes."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = False

    def say(self, text: str) -> None:
        self._clear()
        print("eastwest: " + " ".join(text.split()), file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        if self._live:
            self._clear()
            print(text, end="", file=sys.stderr, flush=True)
            self._shown = True

    def _clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr)
            self._shown = False


def summary(outcome: Outcome) -> list[str]:
    """Where every packet that the tap matched is."""
    counts, ledger = outcome.counts, outcome.ledger
    lines = [
        f"{what(counts.written, 'packet', 'packets')} written in {outcome.seconds:.1f} s: "
        f"{octets(counts.written_bytes)} on the wire, {octets(counts.file_bytes)} of pcapng"
    ]
    if ledger is None:
        return [*lines, "how many were matched is not known: the server does not answer"]
    seen, terms = ledger["seen_packets"], _terms(counts, ledger)
    told = " + ".join([f"{counts.written:,} written", *(f"{n:,} {name}" for name, n in terms if n)])
    missing = seen - counts.written - sum(n for _, n in terms)
    lines.append(f"{what(seen, 'packet', 'packets')} matched" + (f" = {told}" if seen else ""))
    if missing:
        lines.append(f"which does not add up: {missing:+,} packets; see: eastwest ledger --taps")
    if ledger["not_matched_packets"]:
        lines.append(f"{ledger['not_matched_packets']:,} not matched by filter or direction")
    return lines


def _terms(counts: Counts, ledger: Row) -> list[tuple[str, int]]:
    return [
        ("beyond what was asked for", counts.beyond),
        ("not taken by the reader of the output", counts.untaken),
        ("lost (reader_slow)", ledger["missed_packets"]),
        ("pending", ledger["pending_packets"]),
        *((f"lost ({place})", packets) for place, packets in ledger["lost"].items()),
    ]
