"""What this kernel can do, found out by asking it, never by its version."""

from eastwest.kernel._libbpf import ffi, lib

_CGROUP_SKB = 8  # enum bpf_prog_type
_GET_NETNS_COOKIE = 122  # enum bpf_func_id


def cgroup_programs_see_netns_cookie() -> bool:
    """Whether bpf_get_netns_cookie() may be called from cgroup_skb programs (Linux 6.15)."""
    return bool(lib.libbpf_probe_bpf_helper(_CGROUP_SKB, _GET_NETNS_COOKIE, ffi.NULL) == 1)
