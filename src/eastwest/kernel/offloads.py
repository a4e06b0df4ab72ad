"""What an interface leaves to hardware that it may not have (linux/ethtool.h)."""

import fcntl
import socket
import struct

from eastwest.kernel._libbpf import ffi
from eastwest.kernel.libbpf import error

_SIOCETHTOOL = 0x8946
_FEATURE_NAMES, _COUNTS, _NAMES, _SET = (
    4,
    0x37,
    0x1B,
    0x3B,
)  # ETH_SS_FEATURES, ETHTOOL_{GSSET_INFO,GSTRINGS,SFEATURES}
_NAME = 32
_WORD = 32


def never_offload(device: str) -> None:
    """Have the kernel cut what this interface sends, and finish checksums. In the current network namespace.

    Raises KernelError.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        names = _feature_names(s, device)
        bits = [
            bit
            for bit, name in enumerate(names)
            if name.startswith("tx-") and any(word in name for word in ("segmentation", "gso", "checksum"))
        ]
        words = -(-len(names) // _WORD)
        valid = [sum(1 << bit % _WORD for bit in bits if bit // _WORD == word) for word in range(words)]
        blocks = b"".join(struct.pack("=II", which, 0) for which in valid)
        _ask(s, device, bytearray(struct.pack("=II", _SET, words) + blocks))


def _feature_names(s: socket.socket, device: str) -> list[str]:
    """By the number of the feature's bit."""
    counted = _ask(s, device, bytearray(struct.pack("=IIQI", _COUNTS, 0, 1 << _FEATURE_NAMES, 0)))
    (count,) = struct.unpack_from("=I", counted, 16)
    told = _ask(
        s, device, bytearray(struct.pack("=III", _NAMES, _FEATURE_NAMES, count) + bytes(count * _NAME))
    )
    return [told[12 + at : 12 + at + _NAME].split(b"\0")[0].decode() for at in range(0, count * _NAME, _NAME)]


def _ask(s: socket.socket, device: str, about: bytearray) -> bytearray:
    at = int(ffi.cast("uintptr_t", ffi.from_buffer(about)))
    try:
        fcntl.ioctl(s, _SIOCETHTOOL, struct.pack("=16sQ16x", device.encode(), at))
    except OSError as e:
        raise error(f"cannot change what {device} offloads", e.errno or 0, "CAP_NET_ADMIN") from None
    return about
