"""The kernel's word of emulators: told as they start, by their name, and of nobody else."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from eastwest.kernel.events import RingBuffer
from eastwest.kernel.libbpf import Object
from eastwest.kernel.records import PROCESSES_OBJECT, record


def test_a_program_is_told_by_its_name(root: None, tmp_path: Path) -> None:
    """What begins with qemu, and kvm itself; each once, by its pid."""
    told: list[int] = []

    def receive(event: bytes) -> None:
        told.append(int(np.frombuffer(event, record("process_event"))["pid"][0]))

    def start(name: str) -> int:
        link = tmp_path / name
        link.symlink_to(sys.executable)
        with subprocess.Popen([link, "-S", "-c", ""]) as process:
            return process.pid

    with Object(PROCESSES_OBJECT) as program:
        program.load()
        ring = RingBuffer(program.maps["process_events"], receive)
        try:
            program.attach("process_started")
            others = [start(name) for name in ("qem", "kvmx", "kv", "aqemu", "sleep")]
            wanted = [start(name) for name in ("qemu", "qemu-system-x86_64", "kvm")]
            ring.consume()
        finally:
            ring.close()
        # Other emulators of this machine may start meanwhile.
        assert [pid for pid in told if pid in wanted + others] == wanted
        assert program.maps["processes_missed"].lookup(bytes(4)) == bytes(8)
