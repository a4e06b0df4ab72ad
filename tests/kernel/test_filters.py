"""Filters in the kernel on given frames: the verdict is bpf_filter()'s, whatever is asked of what frame."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from eastwest.errors import KernelError, RefusedError
from eastwest.kernel import trial
from eastwest.kernel.libbpf import CGROUP_SKB, SCHED_CLS, load_instructions
from eastwest.tap.filter import ORDERS, Filter, Wanted, compiled, program
from eastwest.tap.reading import Hook
from tests.kernel import verdicts
from tests.kernel.filter_texts import NOT_ON_RAW_IP, RAW_TEXTS, REFUSED, TEXTS
from tests.kernel.random_frames import Draw

SEED, FRAMES = 5, 4000
PROGRAM_TYPE = {Hook.PORT: SCHED_CLS, Hook.CGROUP: CGROUP_SKB}
_EINVAL = 22


@contextmanager
def loaded(made: Sequence[Filter], hook: Hook) -> Iterator[Callable[[bytes], int]]:
    """A program of these filters: frame → the answer for all orders."""
    descriptor = load_instructions(PROGRAM_TYPE[hook], program(made, hook), "test_filter")

    def answer(frame: bytes) -> int:
        # What a port's program returns is cut to 32 bits here, so it is asked about so many.
        ran = trial.run(descriptor, frame, ifindex=1)
        return ran.verdict if hook is Hook.PORT else ran.control[0] | ran.control[1] << 32

    try:
        yield answer
    finally:
        os.close(descriptor)


def runnable(frames: Sequence[bytes]) -> list[bytes]:
    """The frames that BPF_PROG_TEST_RUN takes: IP ones shorter than their IP header it does not."""
    kept = []
    with loaded([], Hook.PORT) as answer:
        for frame in frames:
            try:
                assert answer(frame) == 0
                kept.append(frame)
            except KernelError as e:
                assert e.errno == _EINVAL
    return kept


def compared(texts: Sequence[str], hook: Hook, frames: Sequence[bytes], head: int) -> None:
    """Every filter says of every frame what bpf_filter() says, and is right both ways at least once."""
    made = verdicts.filters(tuple(texts), hook)
    packets = [frame[head:] for frame in frames]
    wanted = verdicts.judged(made, packets)
    for first in range(0, len(made), 32):
        some = made[first : first + 32]
        with loaded(some, hook) as answer:
            got = verdicts.bits([answer(frame) for frame in frames], len(some))
        column = wanted[:, first : first + 32]
        assert verdicts.disagreements(got, column, texts[first:], packets) == []
    assert [text for text, ever in zip(texts, wanted.any(0), strict=True) if not ever] == NEVER[hook]


BEYOND = ["ip[ip[0:4]:4] = 0", "ether[len] = 0", "ether[4294963199] = 0", "ether[2147483647:4] = 1"]
"""They read where no packet reaches."""
NEVER = {
    # Only a tag in the metadata leaves the EtherType where it is.
    Hook.PORT: [*BEYOND, "vlan and ether[12:2] = 0x0800", "ifindex 7"],
    Hook.CGROUP: ["ether[12:2] = 0x0806", "ether[0:4] > 0xfffffff0", *BEYOND],
}


def test_a_port_filters_as_bpf_filter_does(root: None) -> None:
    """Every primitive of pcap-filter(7), thousands of frames, whole, cut and damaged ones."""
    compared(TEXTS, Hook.PORT, runnable(Draw(SEED).some(FRAMES)), 0)


def test_a_cgroup_filters_raw_ip_as_bpf_filter_does(root: None) -> None:
    """There a packet begins with its IP header."""
    frames = runnable(Draw(SEED + 1).some(FRAMES, tags=False))
    compared(RAW_TEXTS, Hook.CGROUP, frames, 14)


def test_what_cannot_be_translated_is_refused_by_name(root: None) -> None:
    """Each refusal says what is the matter, in printable characters."""
    for hook, refused in ((Hook.PORT, REFUSED), (Hook.CGROUP, NOT_ON_RAW_IP)):
        for (text, word), answer in zip(
            refused.items(), compiled([Wanted(text) for text in refused], hook), strict=True
        ):
            assert isinstance(answer, RefusedError), text
            assert word in str(answer), (text, str(answer))
            assert str(answer).isprintable()


def test_a_program_answers_for_64_orders_and_no_more(root: None) -> None:
    """Bit i is filter i's, at a cgroup all 64 of them; a 65th is refused."""
    made = verdicts.filters(tuple(f"udp port {53 + i}" for i in range(ORDERS)), Hook.CGROUP)
    frames = runnable(Draw(SEED).some(500, tags=False))
    with loaded(made, Hook.CGROUP) as answer:
        got = verdicts.bits([answer(frame) for frame in frames], ORDERS)
    assert (got == verdicts.judged(made, [frame[14:] for frame in frames])).all()
    assert got[:, 32].any()
    with pytest.raises(RefusedError, match="at most 64"):
        program([*made, made[0]], Hook.CGROUP)
    with pytest.raises(RefusedError, match="another kind of hook"):
        program(made, Hook.PORT)
