"""Gives memory back to the host as soon as it is free.

By itself glibc learns from the large arrays of a cut that memory of their size is wanted again, and keeps it,
once for each thread: 20 MB in a probe that is busy, bench/RESULTS.md.
"""

from eastwest.kernel._libbpf import lib

_LARGE = 128 << 10
"""glibc's own default, before it learns; setting it ends the learning (mallopt(3))."""


def keep_little() -> None:
    """Have this process return what it frees; call it before the work begins."""
    for parameter, value in (
        (lib.M_ARENA_MAX, 1),
        (lib.M_MMAP_THRESHOLD, _LARGE),
        (lib.M_TRIM_THRESHOLD, _LARGE),
    ):
        lib.mallopt(parameter, value)
