"""What was counted for taps at points that are gone, and of streams that are over: in a file, for a kill."""

import logging
from collections import Counter
from pathlib import Path

import msgspec

from eastwest.bus.taps import TapPoint, TapStream
from eastwest.tap.points import past_point

log = logging.getLogger(__name__)

_MOST = 256
"""Taps that are over; those before them are forgotten."""


class _Kept(msgspec.Struct):
    points: dict[str, dict[str, int]]
    streams: list[TapStream]


class TapPast:
    """`points`: tap → sums over what it counted at sources that are gone, which `Points` adds to."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written = b""
        self.points: dict[str, Counter[str]] = {}
        self._streams: dict[str, TapStream] = {}

    def read(self) -> None:
        """Take over what an earlier probe wrote down; of a file that is broken, nothing."""
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            log.warning("what was counted for earlier taps cannot be read: %s", error)
            return
        self.points |= {tap: Counter(sums) for tap, sums in kept.points.items()}
        self._streams |= {stream.tap: stream for stream in kept.streams}

    def write(self) -> None:
        """Write down what has changed since the last time. Blocks for as long as the disk takes."""
        sums = {tap: dict(of) for tap, of in list(self.points.items())}
        told = msgspec.json.encode(_Kept(sums, list(self._streams.values())))
        if told == self._written:
            return
        made = self._file.with_suffix(".new")
        try:
            made.write_bytes(told)
            made.replace(self._file)
            self._written = told
        except OSError as error:
            log.warning("what was counted for taps is not kept for a kill: %s", error)

    def remember(self, status: TapStream) -> None:
        """A stream that is over, with those of its name before it; the last taps only."""
        before = self._streams.pop(status.tap, None)
        self._streams[status.tap] = status if before is None else _sum(before, status)
        while len(self._streams) > _MOST:
            self.points.pop(next(iter(self._streams)), None)
            del self._streams[next(iter(self._streams))]

    @property
    def taps(self) -> set[str]:
        """Those of which there is something."""
        return {*list(self.points), *self._streams}

    def answer(self) -> tuple[list[TapPoint], list[TapStream]]:
        """Of points that are gone, and of streams that are over."""
        return [past_point(*of) for of in list(self.points.items())], list(self._streams.values())


def _sum(one: TapStream, other: TapStream) -> TapStream:
    return TapStream(
        tap=one.tap,
        connected=False,
        pending=0,
        unanswered=0,
        confirmed=one.confirmed + other.confirmed,
        lost=dict(Counter(one.lost) + Counter(other.lost)),
        sent_bytes=one.sent_bytes + other.sent_bytes,
        reconnects=one.reconnects + other.reconnects,
        problem=other.problem,
    )
