"""A thin face on libbpf: objects, maps as numpy arrays, errors with their remedy."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from eastwest.errors import KernelError, MissingFeature, MissingPrivilege
from eastwest.kernel._libbpf import ffi, lib

Array = NDArray[Any]

BPF_ANY, BPF_NOEXIST = 0, 1
ENOENT, E2BIG, EPERM, EINVAL, ENOSPC = 2, 7, 1, 22, 28
SCHED_CLS, CGROUP_SKB = 3, 8  # enum bpf_prog_type
_PER_CPU_TYPES = frozenset({5, 6, 10, 21})  # enum bpf_map_type: the PERCPU_* ones
_log = ffi.new("char[65536]")
_VERIFIER_LOG = 1 << 20
_CLEARED_AT_ONCE = 4096


def possible_cpus() -> int:
    """How many copies a per-CPU value has."""
    return int(lib.libbpf_num_possible_cpus())


def error(what: str, errno: int, capability: str = "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN") -> KernelError:
    """The typed error for an errno that the kernel gave; `capability`: what EPERM means that it lacks."""
    reason = os.strerror(errno)
    if errno == EPERM:
        return MissingPrivilege(f"{what}: {reason}", f"needs {capability}: run as root", errno)
    return KernelError(f"{what}: {reason}", errno=errno)


def checked(result: int, what: str) -> int:
    """A libbpf result, negative errno turned into an error."""
    if result < 0:
        raise error(what, -result)
    return result


def load_instructions(kind: int, instructions: bytes, name: str) -> int:
    """Load a generated program, an array of `struct bpf_insn`; the descriptor, which the caller closes.

    Raises MissingPrivilege, or KernelError with the verifier's last word (E2BIG: it had to look at too much).
    """
    code = ffi.from_buffer("struct bpf_insn[]", instructions)
    size = len(instructions) // ffi.sizeof("struct bpf_insn")
    found = lib.bpf_prog_load(kind, name.encode(), b"Dual BSD/GPL", code, size, ffi.NULL)
    if found >= 0:
        return int(found)
    if found == -EPERM:
        raise error(f"cannot load {name}", EPERM)
    if found == -E2BIG:
        raise KernelError(f"the verifier cannot follow {name} to its end", errno=E2BIG)
    # Only a refused program is asked why: a log of one that is accepted costs more than the program.
    log = ffi.new("char[]", _VERIFIER_LOG)
    opts = {"sz": ffi.sizeof("struct bpf_prog_load_opts"), "log_level": 1, "log_size": _VERIFIER_LOG}
    options = ffi.new("struct bpf_prog_load_opts *", {**opts, "log_buf": log})
    again = lib.bpf_prog_load(kind, name.encode(), b"Dual BSD/GPL", code, size, options)
    if again >= 0:
        return int(again)
    raise KernelError(f"the kernel refuses {name}: {_last_message(log)}", errno=-int(found))


class Map:
    """One BPF map, read and written as numpy arrays of its key and value types."""

    def __init__(self, name: str, fd: int, handle: Any) -> None:
        self.name = name
        self.fd = fd
        self.key_size = int(lib.bpf_map__key_size(handle))
        self.max_entries = int(lib.bpf_map__max_entries(handle))
        size = int(lib.bpf_map__value_size(handle))
        self.cpus = possible_cpus() if lib.bpf_map__type(handle) in _PER_CPU_TYPES else 1
        # A per-CPU value is copied out in slots of eight bytes.
        self.value_size = -(-size // 8) * 8 if self.cpus > 1 else size

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Write one element; per CPU, `value` has a slot for each. KernelError: EEXIST, E2BIG."""
        key_at = ffi.from_buffer(key) if self.key_size else ffi.NULL
        checked(lib.bpf_map_update_elem(self.fd, key_at, ffi.from_buffer(value), flags), f"map {self.name}")

    def lookup(self, key: bytes) -> bytes | None:
        """One element's value (all CPUs), None where there is none."""
        value = bytearray(self.value_size * self.cpus)
        result = lib.bpf_map_lookup_elem(self.fd, ffi.from_buffer(key), ffi.from_buffer(value))
        if result == -ENOENT:
            return None
        checked(result, f"map {self.name}")
        return bytes(value)

    def delete(self, key: bytes) -> bool:
        """Remove one element; False where there was none."""
        result = lib.bpf_map_delete_elem(self.fd, ffi.from_buffer(key))
        if result == -ENOENT:
            return False
        checked(result, f"map {self.name}")
        return True

    def push(self, value: bytes) -> None:
        """Put a value on a stack."""
        self.update(b"", value)

    def pop(self) -> bytes | None:
        """Take a value off a stack, None where it is empty."""
        value = bytearray(self.value_size)
        result = lib.bpf_map_lookup_and_delete_elem(self.fd, ffi.NULL, ffi.from_buffer(value))
        if result == -ENOENT:
            return None
        checked(result, f"map {self.name}")
        return bytes(value)

    def read(self, key_type: np.dtype[Any], value_type: np.dtype[Any]) -> tuple[Array, Array]:
        """All elements: keys (n,), values (n,), or (n, cpus) where they are per CPU.

        Exact only if nobody adds or removes elements meanwhile.
        """
        room = self.max_entries + 1
        keys = np.empty(room, key_type)
        values = np.empty((room, self.cpus) if self.cpus > 1 else room, value_type)
        if key_type.itemsize != self.key_size or value_type.itemsize != self.value_size:
            raise KernelError(f"map {self.name} does not hold what was asked for")
        cursor, count, last = ffi.new("char[64]"), 0, False
        while not last:
            found, last = self._step(
                lib.bpf_map_lookup_batch, cursor, count > 0, keys[count:], values[count:]
            )
            count += found
        return keys[:count], values[:count]

    def clear(self) -> None:
        """Remove all elements of a hash map. Nobody may add elements meanwhile."""
        keys = np.empty((_CLEARED_AT_ONCE, self.key_size), np.uint8)
        values = np.empty((_CLEARED_AT_ONCE, self.value_size * self.cpus), np.uint8)
        cursor, begun, last = ffi.new("char[64]"), False, False
        while not last:
            _, last = self._step(lib.bpf_map_lookup_and_delete_batch, cursor, begun, keys, values)
            begun = True

    def _step(self, function: Any, cursor: Any, begun: bool, keys: Array, values: Array) -> tuple[int, bool]:
        """As many elements as there is room for, from where the cursor is: how many, and if that was all."""
        count = ffi.new("__u32 *", len(keys))
        result = function(
            self.fd,
            cursor if begun else ffi.NULL,
            cursor,
            ffi.from_buffer(keys.view(np.uint8)),
            ffi.from_buffer(values.view(np.uint8)),
            count,
            ffi.NULL,
        )
        if result not in (0, -ENOENT):
            checked(result, f"map {self.name}")
        return count[0], result == -ENOENT or not count[0]

    def update_many(self, keys: Array, values: Array) -> None:
        """Write these elements. Raises KernelError; then those before the one it refused are written."""
        if len(keys):
            step = ffi.new("__u32 *", len(keys))
            data = [ffi.from_buffer(np.ascontiguousarray(part).view(np.uint8)) for part in (keys, values)]
            checked(lib.bpf_map_update_batch(self.fd, *data, step, ffi.NULL), f"map {self.name}")

    def delete_many(self, keys: Array) -> None:
        """Remove these keys. Raises KernelError (ENOENT) where one is not there."""
        if len(keys):
            step = ffi.new("__u32 *", len(keys))
            data = ffi.from_buffer(np.ascontiguousarray(keys).view(np.uint8))
            checked(lib.bpf_map_delete_batch(self.fd, data, step, ffi.NULL), f"map {self.name}")


class Object:
    """One compiled BPF object: opened, told its sizes and tunables, loaded, closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.maps: dict[str, Map] = {}
        self._links: list[Any] = []
        lib.east_capture_log(_log, ffi.sizeof(_log))
        self._object = lib.bpf_object__open_file(str(path).encode(), ffi.NULL)
        if not self._object:
            raise KernelError(f"cannot open {path}: {_last_message()}")

    def _handles(self) -> Iterator[tuple[str, Any]]:
        handle = lib.bpf_object__next_map(self._object, ffi.NULL)
        while handle:
            yield ffi.string(lib.bpf_map__name(handle)).decode(), handle
            handle = lib.bpf_object__next_map(self._object, handle)

    def _programs(self) -> Iterator[tuple[str, Any]]:
        handle = lib.bpf_object__next_program(self._object, ffi.NULL)
        while handle:
            yield ffi.string(lib.bpf_program__name(handle)).decode(), handle
            handle = lib.bpf_object__next_program(self._object, handle)

    def resize(self, entries: dict[str, int]) -> None:
        """Set the sizes of maps before loading."""
        for name, handle in self._handles():
            if name in entries:
                checked(lib.bpf_map__set_max_entries(handle, entries[name]), f"map {name}")

    def set_inner(self, name: str, like: int) -> None:
        """Have the maps in a map of maps be like the one of this descriptor, before loading."""
        for found, handle in self._handles():
            if found == name:
                checked(lib.bpf_map__set_inner_map_fd(handle, like), f"map {name}")

    def share(self, of: Map) -> None:
        """Use another object's map for the one of that name, before loading."""
        for name, handle in self._handles():
            if name == of.name:
                checked(lib.bpf_map__reuse_fd(handle, of.fd), f"map {name}")

    def set_tunables(self, value: bytes) -> None:
        """Fill the object's `const volatile` struct of tunables before loading."""
        for name, handle in self._handles():
            if name.endswith(".rodata"):
                size = int(lib.bpf_map__value_size(handle))
                data = value.ljust(size, b"\0")
                checked(lib.bpf_map__set_initial_value(handle, ffi.from_buffer(data), size), "tunables")

    def pin_maps(self, directory: Path, only: Collection[str] = ()) -> None:
        """Have every map but the constants, or these alone, pinned in `directory`; those already there are
        adopted at load."""
        for name, handle in self._handles():
            if name in only or not (only or "." in name):
                checked(lib.bpf_map__set_pin_path(handle, str(directory / name).encode()), f"map {name}")

    def load(self) -> None:
        """Hand everything to the kernel. Raises MissingPrivilege, or KernelError with its last word."""
        lib.east_capture_log(_log, ffi.sizeof(_log))
        result = lib.bpf_object__load(self._object)
        if result == -EPERM:
            raise error(f"cannot load {self.path.name}", EPERM)
        if result < 0:
            raise MissingFeature(
                f"the kernel refuses {self.path.name}: {_last_message()}",
                "run eastwest doctor to see what this kernel lacks",
                -result,
            )
        self.maps = {name: Map(name, lib.bpf_map__fd(handle), handle) for name, handle in self._handles()}

    def program(self, name: str) -> int:
        """A loaded program's descriptor."""
        for found, handle in self._programs():
            if found == name:
                return checked(lib.bpf_program__fd(handle), f"program {name}")
        raise KernelError(f"{self.path.name} has no program {name}")

    def attach(self, name: str) -> None:
        """Attach a program where its section says, until the object is closed or the process ends."""
        for found, handle in self._programs():
            if found == name:
                link = lib.bpf_program__attach(handle)
                if not link:
                    raise error(f"cannot attach {name}", ffi.errno)
                self._links.append(link)

    def close(self) -> None:
        """Release every descriptor."""
        for link in self._links:
            lib.bpf_link__destroy(link)
        self._links.clear()
        if self._object:
            lib.bpf_object__close(self._object)
            self._object = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _last_message(log: Any = None) -> str:
    """The line of libbpf's (or the given) log that says most: the verifier's last words, or just the last."""
    said = ffi.string(log or _log).decode(errors="replace")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    idle = ("libbpf", "processed", "-- END PROG LOAD LOG")
    telling = [line for line in lines if not any(word in line for word in idle)]
    return str((telling or lines or ["no reason given"])[-1])
