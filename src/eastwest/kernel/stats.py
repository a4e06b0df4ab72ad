"""What the kernel programs cost, from the kernel's own run-time statistics."""

import os
from typing import NamedTuple

from eastwest.kernel._libbpf import ffi, lib
from eastwest.kernel.libbpf import checked


class RunTime(NamedTuple):
    """How often a program ran and for how long (ns), while statistics were on."""

    runs: int
    nanoseconds: int


def enable() -> int:
    """Turn statistics on, host-wide, until the descriptor is closed (BPF_ENABLE_STATS, Linux 5.8)."""
    return checked(lib.bpf_enable_stats(0), "cannot measure run times")


def disable(descriptor: int) -> None:
    os.close(descriptor)


def run_time(program: int) -> RunTime:
    """A program's statistics so far."""
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    checked(lib.bpf_obj_get_info_by_fd(program, info, size), "cannot read a program's statistics")
    return RunTime(int(info.run_cnt), int(info.run_time_ns))
