"""What a meter leaves in the kernel on purpose, and how it is removed.

Everything is in one place of a state directory: `bpf` (pinned maps and links) and `filters.json`.
"""

import zlib
from pathlib import Path

import msgspec

from eastwest.errors import KernelError
from eastwest.kernel import attach
from eastwest.kernel.netns import inside


class Traces(msgspec.Struct):
    """Filters that no pin holds: in which namespace and on which interfaces they were attached."""

    netns: str | None
    interfaces: list[int]


def directory(state_dir: Path) -> Path:
    """Where the BPF file system of a state directory is mounted."""
    return state_dir / "bpf"


def _traces(state_dir: Path) -> Path:
    return state_dir / "filters.json"


def note_filters(pins: Path, netns: Path | None, interfaces: set[int]) -> None:
    """Remember classic filters: they live until somebody removes them."""
    text = msgspec.json.encode(Traces(str(netns) if netns else None, sorted(interfaces)))
    fresh = pins.parent / ".filters.json"
    try:
        fresh.write_bytes(text)
        fresh.replace(_traces(pins.parent))
    except OSError as e:
        raise KernelError(f"cannot write {fresh}: {e.strerror}", "make room on its disk") from None


def filter_handle(pins: Path) -> int:
    """The handle of this meter's classic filters: two meters on one interface have one each."""
    return zlib.crc32(str(pins.absolute()).encode()) or 1


def noted_filters(pins: Path) -> set[int]:
    """Interfaces that an earlier meter attached classic filters to."""
    file = _traces(pins.parent)
    return set(msgspec.json.decode(file.read_bytes(), type=Traces).interfaces) if file.exists() else set()


def remove(state_dir: Path) -> bool:
    """Detach and forget everything; False where there was nothing. Counters end with this."""
    file = _traces(state_dir)
    found = directory(state_dir).is_mount() or file.exists()
    if file.exists():
        traces = msgspec.json.decode(file.read_bytes(), type=Traces)
        netns = Path(traces.netns) if traces.netns else None
        try:
            with inside(netns):
                for ifindex in traces.interfaces:
                    attach.remove_clsact_filters(ifindex, filter_handle(directory(state_dir)))
        except KernelError:
            if netns and netns.exists():
                raise
        file.unlink()
    attach.unmount_bpffs(directory(state_dir))
    return found
