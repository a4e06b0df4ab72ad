"""What this kernel can do, found out by asking it, never by its version."""

import os
import struct

from eastwest.kernel._libbpf import ffi, lib

_CGROUP_SKB = 8  # enum bpf_prog_type
_FUNCTION = 12  # BTF_KIND_FUNC
_GET_NETNS_COOKIE = 122  # enum bpf_func_id
_CALL, _MOVE, _EXIT = 0x85, 0xB7, 0x95


def _instruction(code: int, register: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, register, 0, immediate)


def cgroup_programs_see_netns_cookie() -> bool:
    """Whether bpf_get_netns_cookie() may be called from cgroup_skb programs (Linux 6.15).

    Loads a program that does nothing else. libbpf's own probe reads the verifier's words, which have changed.
    """
    call = _instruction(_CALL, immediate=_GET_NETNS_COOKIE)
    program = call + _instruction(_MOVE, immediate=1) + _instruction(_EXIT)
    code = ffi.from_buffer("struct bpf_insn[]", program)
    descriptor = lib.bpf_prog_load(_CGROUP_SKB, b"ask", b"GPL", code, len(program) // 8, ffi.NULL)
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


def programs_hold_irqs() -> bool:
    """Whether a program may hold interrupts off on its CPU (bpf_local_irq_save(), Linux 6.14)."""
    btf = lib.btf__load_vmlinux_btf()
    if not btf:
        return False
    try:
        return bool(lib.btf__find_by_name_kind(btf, b"bpf_local_irq_save", _FUNCTION) > 0)
    finally:
        lib.btf__free(btf)
