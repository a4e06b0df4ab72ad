"""The process that calls libpcap's compiler: alone, bounded, unprivileged, in an empty network namespace.

There the packet socket sees no packet, and no name is looked up elsewhere: which host's answer would it be?
Reads a JSON list of texts, writes a line of JSON for each as soon as it is done.
"""

import errno
import fcntl
import json
import os
import resource
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

from eastwest.kernel._libbpf import lib as host
from eastwest.kernel._libpcap import ffi, lib

_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h
_LINK_TYPES = {"raw": 12, "syntax": 1}  # DLT_RAW, DLT_EN10MB
_SNAPLEN = 262144
_NETMASK_UNKNOWN = 0xFFFFFFFF
_MEMORY = 1 << 30
_NOBODY = 65534
_NO_PRIVILEGE = 77
_WORDS = 300


def _live_handle() -> Any:
    """A handle on live Ethernet: only for such a one do tests of VLANs read the metadata of a packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
    reason = ffi.new("char[256]")
    handle = lib.pcap_create(b"lo", reason)
    lib.pcap_set_snaplen(handle, _SNAPLEN)
    lib.pcap_set_buffer_size(handle, _SNAPLEN)
    if not handle or lib.pcap_activate(handle) < 0:
        raise PermissionError(errno.EPERM, "pcap_activate")
    return handle


def _leave_network(needed: bool) -> None:
    """Where nothing but the handle is `needed`, a user namespace does, which takes no privilege."""
    if host.unshare(_CLONE_NEWNET) == 0:
        return
    if needed:
        raise PermissionError(errno.EPERM, "unshare")
    host.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _confine() -> None:
    """Give up what compiling does not need."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        with suppress(PermissionError):
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)


def _allow_seconds(seconds: int) -> None:
    """From now on so much CPU time; then the kernel ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))


def _compiled(handle: Any, text: str) -> dict[str, str]:
    program = ffi.new("struct bpf_program *")
    if lib.pcap_compile(handle, program, text.encode(), 1, _NETMASK_UNKNOWN):
        said = ffi.string(lib.pcap_geterr(handle)).decode(errors="replace")[:_WORDS]
        # What it says may quote what the user wrote.
        return {"error": "".join(c if c.isprintable() else "?" for c in said)}
    code = bytes(ffi.buffer(program.bf_insns, program.bf_len * ffi.sizeof("struct bpf_insn")))
    lib.pcap_freecode(program)
    return {"code": code.hex()}


def main() -> int:
    link, seconds = sys.argv[1], int(sys.argv[2])
    texts = json.load(sys.stdin)
    try:
        dead = _LINK_TYPES.get(link)
        _leave_network(needed=dead is None)
        handle = _live_handle() if dead is None else lib.pcap_open_dead(dead, _SNAPLEN)
    except PermissionError:
        return _NO_PRIVILEGE
    _confine()
    for text in texts:
        _allow_seconds(seconds)
        print(json.dumps(_compiled(handle, text)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
