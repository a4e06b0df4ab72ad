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
from eastwest.cli.output import Output
from eastwest.cli.render import Row
from eastwest.cli.tapstream import Brief, Standing
from eastwest.cli.units import octets, size
from eastwest.labels.selector import Selector
from eastwest.manager.times import duration

_ORDERED = ("filter", "direction", "payload", "snaplen", "segment")


@click.command("capture")
@click.argument("selector")
@click.option("-f", "--filter", default="", metavar="FILTER", help="pcap-filter(7), as for tcpdump.")
@options.limits
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
    config = enough(said, wait=not said["no_wait"])
    tap = Brief(api_url(), order(selector, **{key: said[key] for key in _ORDERED}))
    if said["segment"]:
        Line().say(SEGMENT_PRICE)
    if not run(tap, config, said["output"]):
        raise click.exceptions.Exit(1)


def enough(said: dict[str, Any], wait: bool = True) -> CaptureConfig:
    """What `options.limits` were told. Raises RefusedError."""
    return CaptureConfig(
        packets=said["packets"],
        bytes=size(said["max_bytes"]) if said["max_bytes"] else None,
        seconds=seconds(said["lasts"]) if said["lasts"] else None,
        wait=wait,
    )


def order(selector: str, **said: Any) -> Row:
    """What the API is told: a tap with a name of its own."""
    return {"name": f"capture-{secrets.token_hex(4)}", "selector": selector, **said}


def seconds(text: str) -> float:
    """A length of time; a number alone is seconds. Raises RefusedError."""
    return duration(f"{text}s" if text.isdecimal() else text)


def run(tap: Standing, config: CaptureConfig, name: str, quiet: bool = False) -> bool:
    """Capture, and say how it ended: False where that was not as asked. Raises RefusedError, UsageError.

    `quiet`: say only what is wrong.
    """
    line = Line()
    told = line.say if not quiet else lambda _: None
    with Output(name) as output:
        outcome = asyncio.run(Capture(config, tap, told, line.show).run(output))
    if outcome.failed:
        line.say(outcome.why)
    for text in summary(outcome) if tap.ours else reading(outcome):
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


def reading(outcome: Outcome) -> list[str]:
    """What came of a tap that others read too, and goes on."""
    missed, counts = outcome.ledger["missed_packets"] if outcome.ledger else 0, outcome.counts
    lines = [_written(outcome)]
    if counts.untaken:
        lines.append(f"{counts.untaken:,} not taken by the reader of the output")
    if missed:
        lines.append(f"{missed:,} missed at the server by who reads this tap there (reader_slow)")
    return lines


def _written(outcome: Outcome) -> str:
    counts = outcome.counts
    return (
        f"{what(counts.written, 'packet', 'packets')} written in {outcome.seconds:.1f} s: "
        f"{octets(counts.written_bytes)} on the wire, {octets(counts.file_bytes)} of pcapng"
    )


def summary(outcome: Outcome) -> list[str]:
    """Where every packet that the tap matched is."""
    counts, ledger = outcome.counts, outcome.ledger
    lines = [_written(outcome)]
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
