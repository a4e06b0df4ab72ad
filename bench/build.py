"""Compiles the bench's own programs when they are needed; some are built around the product's sources."""

import atexit
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from eastwest.kernel.records import METER_OBJECT

_KERNEL = METER_OBJECT.parent


@cache
def _directory() -> Path:
    directory = Path(mkdtemp(prefix="eastwest-bench-"))
    atexit.register(shutil.rmtree, directory)
    return directory


def compiled(name: str, *options: str) -> Path:
    """The object of bench/NAME.bpf.c, with the flags that the product is built with."""
    source = Path(__file__).parent / f"{name}.bpf.c"
    target = _directory() / f"{name}{abs(hash(options))}.bpf.o"
    machine = subprocess.run(
        ["gcc", "-print-multiarch"], check=True, capture_output=True, text=True
    ).stdout.strip()
    include = [f"-I{_KERNEL}", f"-I{_KERNEL / 'include'}", f"-I/usr/include/{machine}"]
    command = ["clang", "-target", "bpf", "-mcpu=v3", "-O2", "-g", *options, *include]
    subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
    return target
