"""Record layouts, read from the programs' BTF: declared in C once, known to numpy by reading."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from eastwest.errors import KernelError
from eastwest.kernel._libbpf import ffi, lib

METER_OBJECT = Path(__file__).parent / "meter.bpf.o"
ENFORCE_OBJECT = Path(__file__).parent / "enforce.bpf.o"
CGROUPS_OBJECT = Path(__file__).parent / "cgroups.bpf.o"
PROCESSES_OBJECT = Path(__file__).parent / "processes.bpf.o"
TAP_OBJECT = Path(__file__).parent / "tap.bpf.o"
INHERIT_OBJECT = Path(__file__).parent / "inherit.bpf.o"

_INT, _ARRAY, _STRUCT, _ENUM, _TYPEDEF = 1, 3, 4, 6, 8
_TRANSPARENT = frozenset({_TYPEDEF, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag
_SIGNED = 1


@cache
def _btf(program: Path) -> Any:
    btf = lib.btf__parse(str(program).encode(), ffi.NULL)
    if not btf:
        raise KernelError(f"{program} has no type information", "build it again: make setup")
    return btf


def _named(program: Path, name: str, kind: int) -> Any:
    number = lib.btf__find_by_name_kind(_btf(program), name.encode(), kind)
    if number < 0:
        raise KernelError(f"{program.name} does not declare {name}")
    return lib.btf__type_by_id(_btf(program), number)


def _string(btf: Any, offset: int) -> str:
    return str(ffi.string(lib.btf__name_by_offset(btf, offset)).decode())


def _kind(t: Any) -> int:
    return (int(t.info) >> 24) & 0x1F


def _dtype(btf: Any, number: int, order: str = "<") -> np.dtype[Any]:
    t = lib.btf__type_by_id(btf, number)
    while _kind(t) in _TRANSPARENT:
        if _kind(t) == _TYPEDEF and _string(btf, t.name_off).startswith("__be"):
            order = ">"
        t = lib.btf__type_by_id(btf, t.type)
    if _kind(t) == _INT:
        # The four bytes behind the type say how an integer is encoded; bit 24 is its sign.
        encoding = ffi.cast("__u32 *", t + 1)[0]
        return np.dtype(f"{order}{'i' if (encoding >> 24) & _SIGNED else 'u'}{t.size}")
    if _kind(t) == _ENUM:
        return np.dtype(f"{order}u{t.size}")
    if _kind(t) == _ARRAY:
        array = lib.east_btf_array(t)
        item = _dtype(btf, array.type, order)
        # Bytes that are one thing (an address, a path) are compared and copied whole.
        if item.itemsize == 1 and array.nelems > 1:
            return np.dtype(f"V{array.nelems}")
        return np.dtype((item, (array.nelems,)))
    if _kind(t) == _STRUCT:
        return _struct(btf, t)
    raise KernelError(f"a record field of BTF kind {_kind(t)} is not supported")


def _struct(btf: Any, t: Any) -> np.dtype[Any]:
    members = [lib.east_btf_members(t)[i] for i in range(int(t.info) & 0xFFFF)]
    return np.dtype(
        {
            "names": [_string(btf, m.name_off) for m in members],
            "formats": [_dtype(btf, m.type) for m in members],
            "offsets": [m.offset // 8 for m in members],
            "itemsize": t.size,
        }
    )


@cache
def record(name: str, program: Path = METER_OBJECT) -> np.dtype[Any]:
    """The numpy type of the C struct `name` that a program uses. Raises KernelError where there is none."""
    return _struct(_btf(program), _named(program, name, _STRUCT))


@cache
def enumeration(name: str, program: Path = METER_OBJECT) -> dict[str, int]:
    """The C enum `name` that a program uses: constant → value."""
    t = _named(program, name, _ENUM)
    values = lib.east_btf_enum(t)
    btf = _btf(program)
    return {_string(btf, values[i].name_off): int(values[i].val) for i in range(int(t.info) & 0xFFFF)}
