"""What bpf_filter() says of frames: the judge of every filter in the kernel."""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from eastwest.kernel import pcap
from eastwest.kernel.pcap import Instruction
from eastwest.tap.filter import ORDERS, Filter, Wanted, compiled
from eastwest.tap.reading import Hook

_LOAD_CONSTANT, _STORE, _WORDS = 0x00, 0x02, 16
_TAG, _TAG_PRESENT, _IFINDEX = 0xFFFFF02C, 0xFFFFF030, 0xFFFFF008


@cache
def filters(texts: tuple[str, ...], hook: Hook) -> list[Filter]:
    """All of them compiled; none is refused."""
    made = compiled([Wanted(text) for text in texts], hook)
    refused = {text: str(one) for text, one in zip(texts, made, strict=True) if not isinstance(one, Filter)}
    assert refused == {}
    return [one for one in made if isinstance(one, Filter)]


def groups(made: Sequence[Filter]) -> Iterator[tuple[int, list[Filter]]]:
    """As many as fit into one program, and the number of the first."""
    for first in range(0, len(made), ORDERS):
        yield first, list(made[first : first + ORDERS])


def with_metadata(code: Sequence[Instruction], tag: int | None, ifindex: int) -> list[Instruction]:
    """The filter for packets of this metadata: bpf_filter() sees frames only, so its loads are constants."""
    known = {_TAG: tag or 0, _TAG_PRESENT: int(tag is not None), _IFINDEX: ifindex}
    return [
        Instruction(_LOAD_CONSTANT, 0, 0, known[i.k]) if _asks(i, known) else i for i in with_memory(code)
    ]


def with_memory(code: Sequence[Instruction]) -> list[Instruction]:
    """The same filter with its memory set to zero first.

    libpcap's `vlan and pppoes`, for one, reads a word that nobody wrote: bpf_filter(), its old stack.
    """
    zeros = [Instruction(_STORE, 0, 0, word) for word in range(_WORDS)]
    return [Instruction(_LOAD_CONSTANT, 0, 0, 0), *zeros, *code]


def _asks(i: Instruction, known: dict[int, int]) -> bool:
    return i.code & 0xE7 == 0x20 and i.k in known


def judged(
    made: Sequence[Filter], frames: Sequence[bytes], tag: int | None = None, ifindex: int = 1
) -> NDArray[np.bool_]:
    """[frame, filter]: whether bpf_filter() takes it, with a VLAN tag in its metadata or none."""
    verdicts = [pcap.accepted(with_metadata(one.code, tag, ifindex), frames) for one in made]
    return np.array(verdicts, bool).T.reshape(len(frames), len(made))


def bits(answers: Sequence[int], count: int) -> NDArray[np.bool_]:
    """[packet, order] from the answers of a program of `count` filters."""
    orders = np.arange(count, dtype=np.uint64)
    return (np.array(answers, np.uint64)[:, None] >> orders & np.uint64(1)).astype(bool)


def disagreements(
    made: NDArray[np.bool_], wanted: NDArray[np.bool_], texts: Sequence[str], frames: Sequence[bytes]
) -> list[tuple[str, str]]:
    """Filter and frame where the kernel and bpf_filter() differ."""
    return [(texts[column], frames[row].hex()) for row, column in np.argwhere(made != wanted)][:10]
