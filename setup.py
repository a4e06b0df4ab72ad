"""Builds what a wheel carries so that installing it needs no compiler: BPF objects and the libbpf binding."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

KERNEL = Path("src/eastwest/kernel")


def compile_bpf(source: Path, target: Path) -> None:
    """Compile one program with clang; -mcpu=v3 gives atomic operations and 32-bit jumps (Linux 5.12)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    multiarch = subprocess.run(
        ["gcc", "-print-multiarch"], check=True, capture_output=True, text=True
    ).stdout.strip()
    warnings = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"]
    include = [f"-I{KERNEL / 'include'}", f"-I/usr/include/{multiarch}"]
    command = ["clang", "-target", "bpf", "-mcpu=v3", "-O2", "-g", *warnings, *include]
    subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
    # Drop DWARF, keep BTF: a third of the size.
    strip = shutil.which("llvm-strip") or shutil.which("llvm-strip-14")
    if strip:
        subprocess.run([strip, "-g", str(target)], check=True)


class BuildKernel(build_ext):
    """`build_ext` that also compiles every *.bpf.c next to the Python modules."""

    def run(self) -> None:
        super().run()
        out = KERNEL if self.inplace else Path(self.build_lib) / "eastwest/kernel"
        for source in sorted(KERNEL.glob("*.bpf.c")):
            compile_bpf(source, out / f"{source.name.removesuffix('.c')}.o")
        if self.inplace:
            # The tests' own programs: where the tests run, there may be no compiler.
            for source in sorted(Path("tests").rglob("*.bpf.c")):
                compile_bpf(source, source.with_suffix(".o"))


setup(
    cffi_modules=[
        f"{KERNEL}/_libbpf_build.py:ffi",
        f"{KERNEL}/_libpcap_build.py:ffi",
        f"{KERNEL}/_blocks_build.py:ffi",
    ],
    cmdclass={"build_ext": BuildKernel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
