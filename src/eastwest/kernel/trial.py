"""Running a program on a given frame, on the calling CPU (BPF_PROG_TEST_RUN): for tests and benchmarks."""

from typing import Any, NamedTuple

from eastwest.kernel._libbpf import ffi, lib
from eastwest.kernel.libbpf import checked

_LIVE_FRAMES = 2


class Trial(NamedTuple):
    """What the program returned the last time, the mean time of a run (ns), and the first words of `cb`."""

    verdict: int
    nanoseconds: int
    control: tuple[int, int] = (0, 0)


def run(
    program: int,
    frame: bytes,
    repeat: int = 1,
    *,
    ifindex: int = 0,
    mark: int = 0,
    gso_segs: int = 0,
    gso_size: int = 0,
) -> Trial:
    """Run on a frame as if on interface `ifindex` (0: lo), marked, a super-packet. Raises KernelError."""
    context = ffi.new("struct __sk_buff *")
    context.ifindex, context.mark = ifindex, mark
    context.gso_segs, context.gso_size = gso_segs, gso_size
    return _run(program, frame, repeat, context)


def run_xdp(program: int, frame: bytes, repeat: int = 1) -> Trial:
    """Run an XDP program on a frame as if on lo. Raises KernelError."""
    return _run(program, frame, repeat, ffi.NULL)


def _run(program: int, frame: bytes, repeat: int, context: Any) -> Trial:
    given = ffi.from_buffer(frame)
    size = ffi.sizeof("struct __sk_buff") if context else 0
    after = ffi.new("struct __sk_buff *") if context else ffi.NULL
    options = ffi.new(
        "struct bpf_test_run_opts *",
        {
            "sz": ffi.sizeof("struct bpf_test_run_opts"),
            "data_in": given,
            "data_size_in": len(frame),
            "ctx_in": context,
            "ctx_size_in": size,
            "ctx_out": after,
            "ctx_size_out": size,
            "repeat": repeat,
        },
    )
    checked(lib.bpf_prog_test_run_opts(program, options), "test run")
    control = (int(after.cb[0]), int(after.cb[1])) if context else (0, 0)
    return Trial(int(options.retval), int(options.duration), control)


def send(program: int, frame: bytes, count: int) -> None:
    """Run an XDP program over `count` copies of a frame that are real (Linux 5.18), in the current namespace.

    What it redirects leaves by that interface. Raises KernelError.
    """
    options = ffi.new(
        "struct bpf_test_run_opts *",
        {
            "sz": ffi.sizeof("struct bpf_test_run_opts"),
            "data_in": (given := ffi.from_buffer(frame)),
            "data_size_in": len(given),
            "repeat": count,
            "flags": _LIVE_FRAMES,
        },
    )
    checked(lib.bpf_prog_test_run_opts(program, options), "cannot generate traffic")
