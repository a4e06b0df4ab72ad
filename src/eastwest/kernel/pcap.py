"""Filter texts (pcap-filter(7)) compiled by libpcap to classic BPF, in a process of their own.

An order's text comes from the network. libpcap's compiler is C that recurses, and its optimizer takes 7.6 s
of CPU time for a list of 500 hosts, 9 KB; so neither its crash nor its hunger may reach the probe.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from eastwest.errors import KernelError, MissingPrivilege, RefusedError
from eastwest.kernel._libpcap import ffi, lib

ETHERNET, RAW = "ethernet", "raw"
"""What a frame begins with: an Ethernet header (tc hooks), or the IP header (cgroup hooks)."""

SYNTAX = "syntax"
"""Ethernet, but no packet is ever asked about: all that is wanted is whether libpcap takes the text."""

TEXT_BYTES = 1 << 16
CPU_SECONDS = 5
_START_SECONDS = 60
_NO_PRIVILEGE = 77
_SIZE = ffi.sizeof("struct bpf_insn")


class Instruction(NamedTuple):
    """One instruction of classic BPF (bpf(4)): jump offsets count from the next one."""

    code: int
    jt: int
    jf: int
    k: int


def compiled(texts: Sequence[str], link: str) -> list[tuple[Instruction, ...] | RefusedError]:
    """Each text's instructions, or why it is refused. Raises KernelError where libpcap cannot be asked.

    Blocks, at worst CPU_SECONDS of CPU time for each text.
    """
    results: list[tuple[Instruction, ...] | RefusedError] = []
    while len(results) < len(texts):
        rest = texts[len(results) :]
        # Each child answers at least for the first: the text at which it dies is the one that killed it.
        results += _child(rest, link)
    return results


def _child(texts: Sequence[str], link: str) -> Iterator[tuple[Instruction, ...] | RefusedError]:
    """What one child could answer, and a refusal for the text at which it died."""
    sound = [text if _possible(text) is None else "" for text in texts]
    command = [sys.executable, "-P", "-m", "eastwest.kernel.pcap_child", link, str(CPU_SECONDS)]
    status, output = 0, b""
    try:
        done = subprocess.run(
            command,
            check=False,
            input=json.dumps(sound).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_START_SECONDS + CPU_SECONDS * len(texts),
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as e:
        status, output = -1, e.stdout or b""
    if status == _NO_PRIVILEGE:
        raise MissingPrivilege(
            "libpcap cannot open a packet socket", "needs CAP_NET_RAW and CAP_SYS_ADMIN: run as root"
        )
    # A line that was cut short by the child's end is no answer.
    answers = [json.loads(line) for line in output.split(b"\n")[:-1]]
    if not answers and status > 0:
        raise KernelError("libpcap's compiler cannot be started", "is eastwest installed completely?")
    for text, answer in zip(texts, answers, strict=False):
        yield _possible(text) or _result(answer)
    for text in islice(texts, len(answers), len(answers) + 1):
        yield _possible(text) or RefusedError(
            f"libpcap cannot compile this filter within {CPU_SECONDS} s",
            "write it shorter: networks instead of hosts, portrange instead of ports",
        )


def _possible(text: str) -> RefusedError | None:
    """Why a text cannot even be handed over."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return RefusedError("the filter is not text", "write it as tcpdump takes it: pcap-filter(7)")
    if size > TEXT_BYTES:
        return RefusedError(f"the filter has {size} bytes", f"at most {TEXT_BYTES} are taken")
    if "\0" in text:
        return RefusedError(
            "the filter has a zero byte in it", "write it as tcpdump takes it: pcap-filter(7)"
        )
    return None


def _result(answer: dict[str, str]) -> tuple[Instruction, ...] | RefusedError:
    if "error" in answer:
        return RefusedError(f"libpcap refuses the filter: {answer['error']}", "see pcap-filter(7)")
    code = ffi.from_buffer("struct bpf_insn[]", bytes.fromhex(answer["code"]))
    return tuple(Instruction(i.code, i.jt, i.jf, i.k) for i in code)


def accepted(code: Sequence[Instruction], frames: Sequence[bytes]) -> list[bool]:
    """Which frames libpcap's own interpreter takes: what tests compare the kernel's verdict with."""
    program = ffi.new("struct bpf_insn[]", [tuple(instruction) for instruction in code])
    return [lib.bpf_filter(program, ffi.from_buffer(one), len(one), len(one)) != 0 for one in frames]
