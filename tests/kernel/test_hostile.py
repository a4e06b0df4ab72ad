"""A million mutated frames: none stops the meter, none goes uncounted, none is counted twice."""

import random

from eastwest.errors import KernelError
from eastwest.kernel import trial
from eastwest.kernel.records import enumeration
from eastwest.meter.drain import Drain
from eastwest.meter.meter import Meter, Source
from tests.kernel.test_parse import CASES

FRAMES = 1_000_000
SEED = 20
_HEADER_BYTES = 60
_EINVAL = 22


def mutated(rng: random.Random, frame: bytes) -> bytes:
    """Bytes of the headers changed, or the frame cut or prolonged: what an attacker would try."""
    data = bytearray(frame)
    for _ in range(rng.randrange(4)):
        data[rng.randrange(min(len(data), _HEADER_BYTES))] = rng.randrange(256)
    if rng.random() < 0.2:
        del data[rng.randrange(14, len(data) + 1) :]
    elif rng.random() < 0.1:
        data += rng.randbytes(rng.randrange(40))
    return bytes(data)


def test_a_million_mutated_frames_are_all_counted_once(meter: Meter) -> None:
    """Frames = hook = account, flows and what the full map lost = account, in packets and in bytes."""
    rng, frames = random.Random(SEED), [case[1] for case in CASES]
    account = meter.open_account()
    meter.set_port(1, Source(1, account))
    drain, program = Drain(meter), meter.program("port_ingress")
    ran = packets = octets = 0
    while ran < FRAMES:
        frame = mutated(rng, rng.choice(frames))
        try:
            assert trial.run(program, frame, ifindex=1).verdict == 0xFFFFFFFF
            ran += 1
        except KernelError as e:
            # The harness, not the program, refuses an IP frame that is shorter than its header.
            assert e.errno == _EINVAL
        if ran % 100_000 == 0:
            cut = drain.cut()
            packets += int(cut.flows.counters["packets"].sum())
            octets += int(cut.flows.counters["bytes"].sum())
            drain.clear(cut.flows)
    cut = drain.cut()
    packets += int(cut.flows.counters["packets"].sum())
    octets += int(cut.flows.counters["bytes"].sum())
    _, _, egress_packets, egress_bytes, *_, full_packets, full_bytes = cut.accounts[account].tolist()
    assert egress_packets == ran
    assert packets + full_packets == ran
    assert octets + full_bytes == egress_bytes
    assert cut.hooks[enumeration("hook")["HOOK_PORT"]].tolist() == [0, 0, egress_packets, egress_bytes]
    assert all(drain.malformed().values()), drain.malformed()
