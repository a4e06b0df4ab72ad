"""Filters come and go under traffic; hostile ones cost their owner an error and nobody else anything."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from eastwest.errors import KernelError, RefusedError
from eastwest.kernel import pcap, trial
from eastwest.kernel.libbpf import SCHED_CLS, load_instructions
from eastwest.tap.filter import ORDERS, Filter, Wanted, compiled, program
from eastwest.tap.payload import Payload
from eastwest.tap.reading import Hook
from eastwest.tap.translate import check
from tests.kernel import verdicts
from tests.kernel.frames import ethernet, ipv4, tcp, udp
from tests.kernel.random_frames import Draw
from tests.kernel.test_filters import runnable
from tests.kernel.watching import Watcher, watching

TCP, UDP = ethernet(ipv4(tcp(bytes(50)), 6), 0x0800), ethernet(ipv4(udp(bytes(50)), 17), 0x0800)
PLACES, SWAPS = 40, 2000
EVERYTHING, NOTHING = "", "less 1"


@pytest.fixture
def watcher(root: None) -> Iterator[Watcher]:
    with watching() as watcher:
        yield watcher


def test_64_orders_are_told_apart_at_both_hooks(watcher: Watcher) -> None:
    """What the asking program gets has a bit for each, the highest ones too."""
    texts = tuple(f"udp port {number}" for number in range(1990, 1990 + ORDERS))
    for hook, name in ((Hook.PORT, "port_seen"), (Hook.CGROUP, "cgroup_seen")):
        watcher.put(hook, [*verdicts.filters(texts, hook)[:-1], *verdicts.filters(("udp",), hook)])
        trial.run(watcher.program(name), UDP)
        trial.run(watcher.program(name), TCP)
        assert [seen.orders for seen in watcher.seen()] == [1 << 10 | 1 << 63, 0]


def test_no_filter_matches_nothing(watcher: Watcher) -> None:
    """An empty place, a program without filters, and a place that was emptied again."""
    for filters in (None, [], verdicts.filters((EVERYTHING,), Hook.PORT)):
        if filters is not None:
            watcher.put(Hook.PORT, filters)
        trial.run(watcher.program("port_seen"), TCP)
    watcher.programs(Hook.PORT).remove(0)
    trial.run(watcher.program("port_seen"), TCP)
    assert [seen.orders for seen in watcher.seen()][-2:] == [1, 0]
    assert watcher.count() == 2


def test_no_packet_meets_a_mixture(watcher: Watcher) -> None:
    """While programs replace one another under traffic on every CPU, one of them answers each packet."""
    yes, no = verdicts.filters((EVERYTHING, NOTHING), Hook.PORT)
    odd, even, programs = [yes, no, yes, no], [no, yes, no, yes], watcher.programs(Hook.PORT)
    programs.put(0, odd)
    stop, ran = threading.Event(), [0] * (os.cpu_count() or 1)

    def work(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        while not stop.is_set():
            trial.run(watcher.program("port_counted"), TCP, repeat=500)
            ran[cpu] += 500

    threads = [threading.Thread(target=work, args=(cpu,)) for cpu in range(len(ran))]
    for thread in threads:
        thread.start()
    try:
        for number in range(SWAPS):
            programs.put(0, even if number % 2 else odd)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    answers = watcher.answers()
    assert answers[0b0101] + answers[0b1010] == sum(answers) == sum(ran)
    assert answers[0b0101] and answers[0b1010]


def test_what_the_verifier_refuses_leaves_the_others_as_they_were(watcher: Watcher) -> None:
    """Filters that are too much for one program are refused; those that were there go on answering."""
    hosts = " or ".join(f"host 10.0.{number}.1" for number in range(120))
    (large,) = verdicts.filters((f"not ({hosts})",), Hook.PORT)
    watcher.put(Hook.PORT, verdicts.filters(("udp", "tcp"), Hook.PORT))
    searches = [large._replace(payload=Payload(bytes([number]) * 32)) for number in range(ORDERS)]
    with pytest.raises(RefusedError, match="too much together"):
        watcher.programs(Hook.PORT).put(0, searches)
    trial.run(watcher.program("port_seen"), TCP)
    assert [seen.orders for seen in watcher.seen()] == [0b10]


def test_a_program_that_is_no_program_is_refused_with_the_verifiers_word(root: None) -> None:
    """The kernel's own reason reaches the user."""
    with pytest.raises(KernelError, match="R0 !read_ok"):
        load_instructions(SCHED_CLS, bytes((0x95, 0, 0, 0, 0, 0, 0, 0)), "nothing")


def test_thousands_of_filters_answer_at_once(watcher: Watcher) -> None:
    """2,560 of them at 40 places: each place answers for its own filters."""
    pool = verdicts.filters(
        tuple(f"port {number} or len = {number}" for number in range(40, 40 + ORDERS)), Hook.PORT
    )
    for place in range(PLACES):
        watcher.put(Hook.PORT, pool[place:] + pool[:place], place)
    frames = runnable(Draw(3).some(10))
    for frame in frames:
        for place in range(PLACES):
            trial.run(watcher.program("port_seen"), frame, mark=place)
    got = verdicts.bits([seen.orders for seen in watcher.seen()], ORDERS)
    wanted = verdicts.judged(pool, frames)
    turned = [np.roll(row, -place) for row in wanted for place in range(PLACES)]
    assert (got == np.array(turned)).all()


def hostile() -> dict[str, str]:
    """Texts that try libpcap's parser, its optimizer, the translator, the verifier."""
    return {
        "too long": "ip or " * 20_000 + "ip",
        "deep parentheses": "(" * 30_000 + "ip" + ")" * 30_000,
        "deep negation": "not " * 16_000 + "ip",
        "deep indices": "ip[" * 8000 + "0" + "]" * 8000 + " = 1",
        "many hosts": " or ".join(f"host 10.{n >> 8}.{n & 255}.1" for n in range(3000)),
        "many ports": " or ".join(f"port {n}" for n in range(4000)),
        "many terms": " and ".join(f"(tcp[{n}] = 1 or udp[{n}] = 2)" for n in range(1500)),
        "many registers": "ip[0]" + " + (ip[0]" * 3000 + ")" * 3000 + " = 1",
        "zero byte": "ip\0",
        "surrogate": "\udc80",
    }


def test_hostile_texts_are_refused_and_cost_nobody_else_anything(
    root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is refused in bounded time, none ends this process, and the sound ones between are compiled."""
    monkeypatch.setattr(pcap, "CPU_SECONDS", 1)
    texts = hostile()
    asked = [Wanted(text) for one in texts.values() for text in (one, "tcp port 80")]
    made = compiled(asked, Hook.PORT)
    assert [type(one) for one in made[1::2]] == [Filter] * len(texts)
    refused = dict(zip(texts, made[::2], strict=True))
    assert {name for name, one in refused.items() if not isinstance(one, RefusedError)} == set()
    assert all(len(str(one)) < 500 for one in refused.values())


def test_large_texts_that_bounds_allow_are_translated(root: None) -> None:
    """They compile, load and give bpf_filter()'s verdict: long chains, deep nesting, many indirect loads."""
    texts = {
        "hosts": " or ".join(f"host 10.0.{n}.1" for n in range(60)) + " or host 10.0.0.2",
        "parentheses": "(" * 1000 + "udp" + ")" * 1000,
        "negations": "not " * 1001 + "udp",
        "indices": "ip[" * 300 + "0" + "]" * 300 + " = 0x45",
        "sums": "ip[" + " + ".join(["ip[0]"] * 300) + "] = 0",
        "terms": " and ".join(f"(udp[{n}] = 0 or tcp[{n}] != 1)" for n in range(60)),
        "tags": " or ".join(["vlan and udp"] * 8),
        "addresses": " or ".join(f"host fd00::{n:x}" for n in range(60)),
    }
    made = verdicts.filters(tuple(texts.values()), Hook.PORT)
    frames = runnable(Draw(11).some(400))
    wanted = verdicts.judged(made, frames)
    with watching() as watcher:
        watcher.put(Hook.PORT, made)
        for frame in frames:
            trial.run(watcher.program("port_seen"), frame)
        got = verdicts.bits([seen.orders for seen in watcher.seen()], len(made))
    assert verdicts.disagreements(got, wanted, list(texts), frames) == []


def test_long_programs_are_refused_before_the_kernel_sees_them() -> None:
    """More classic instructions than the kernel takes from tcpdump, or jumps further than eBPF can say."""
    with pytest.raises(RefusedError, match="4096"):
        _checked([pcap.Instruction(0x00, 0, 0, 0)] * 4096)
    with pytest.raises(RefusedError, match="too long"):
        _checked([pcap.Instruction(0x20, 0, 0, 4)] * 4000)
    loads = Filter(Hook.PORT, (*[pcap.Instruction(0x20, 0, 0, 4)] * 200, pcap.Instruction(0x06, 0, 0, 1)))
    with pytest.raises(RefusedError, match="too much together"):
        program([loads] * ORDERS, Hook.PORT)


def _checked(code: list[pcap.Instruction]) -> None:
    whole = (*code, pcap.Instruction(0x06, 0, 0, 1))
    check(whole, Hook.PORT)
    program([Filter(Hook.PORT, whole)], Hook.PORT)


_WITHOUT = """
import ctypes, os, sys
for capability in (13, 21):  # CAP_NET_RAW, CAP_SYS_ADMIN
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
ask = "from eastwest.kernel import pcap; pcap.compiled(['tcp'], pcap.ETHERNET)"
os.execv(sys.executable, [sys.executable, "-P", "-c", ask])
"""


def test_missing_privilege_is_named(root: None) -> None:
    """Where no packet socket may be opened, it is the host that refuses, not the filter that is refused."""
    done = subprocess.run([sys.executable, "-P", "-c", _WITHOUT], check=False, capture_output=True, text=True)
    assert "MissingPrivilege: libpcap cannot open a packet socket; needs CAP_NET_RAW" in done.stderr
