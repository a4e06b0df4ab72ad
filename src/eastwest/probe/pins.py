"""What a probe leaves in the kernel on purpose, and how it is removed."""

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


def note_filters(state_dir: Path, netns: Path | None, interfaces: list[int]) -> None:
    """Remember classic filters: they live until somebody removes them."""
    text = msgspec.json.encode(Traces(str(netns) if netns else None, interfaces))
    _traces(state_dir).write_bytes(text)


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
                    attach.remove_clsact_filters(ifindex)
        except KernelError:
            if netns and netns.exists():
                raise
        file.unlink()
    attach.unmount_bpffs(directory(state_dir))
    return found
