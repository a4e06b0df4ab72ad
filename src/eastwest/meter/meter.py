"""Loads the meter, attaches it, and tells it whose each port and cgroup is.

Maps and links are pinned: counting goes on without the probe, and the next one takes everything over.
"""

import os
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from eastwest.errors import KernelError, MissingFeature
from eastwest.kernel import attach, features
from eastwest.kernel.libbpf import BPF_NOEXIST, Map, Object
from eastwest.kernel.netns import OWN, cookie, inside
from eastwest.kernel.records import METER_OBJECT, enumeration, record
from eastwest.meter import pins
from eastwest.meter.check import cgroup_mount, check
from eastwest.meter.config import MeterConfig

_FIRST = bytes(4)
_PROGRAMS = (
    "port_ingress",
    "port_egress",
    "cgroup_ingress",
    "cgroup_egress",
    "interface_ingress",
    "interface_egress",
)


class Source(NamedTuple):
    """What a hook knows of a port or cgroup; label 0: not known."""

    label: int
    account: int
    suspect: bool = False
    enforced: bool = False

    def pack(self, enforcement: str) -> bytes:
        """As the kernel has it; `enforcement`: the constant for how its kind of source is enforced."""
        traffic_class = enumeration("traffic_class")["CLASS_SUSPECT" if self.suspect else "CLASS_NORMAL"]
        how = enumeration("enforcement")[enforcement if self.enforced else "ENFORCE_NOT"]
        return np.array((self.label, self.account, traffic_class, how, b""), record("source")).tobytes()

    @classmethod
    def unpack(cls, row: Any) -> Self:
        return cls(int(row["label"]), int(row["account"]), bool(row["class"]), bool(row["enforcement"]))


class Meter:
    """The kernel side of counting. `directory` is where its own BPF file system is mounted."""

    def __init__(self, config: MeterConfig, directory: Path) -> None:
        self._config = config
        self._pins = directory
        self._handle = pins.filter_handle(directory)
        self._object = Object(METER_OBJECT)
        self._lock = threading.Lock()
        self.tcx = True
        self.adopted = False
        """Whether counters of an earlier probe were taken over."""
        self.boot = 0

    def __enter__(self) -> Self:
        check(self._config)
        attach.mount_bpffs(self._pins)
        existed = (self._pins / "state").exists()
        try:
            self._load()
            self._attach_cgroups()
            for name in self._config.host_interfaces:
                self._attach_interface(name)
        except BaseException:
            self._object.close()
            if not existed:
                attach.unmount_bpffs(self._pins)  # half a meter is none
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._object.close()

    def _load(self) -> None:
        config = self._config
        self._object.resize(map_sizes(config))
        self._object.set_tunables(_tunables(config))
        self._object.pin_maps(self._pins)
        try:
            self._object.load()
        except KernelError as e:
            if (self._pins / "state").exists() and e.errno != 1:
                e.args = (f"{e}; if sizes or version changed: run eastwest down, then up again",)
            raise
        has_tcx = attach.has_tcx(self.program("port_ingress"))
        if config.attach == "tcx" and not has_tcx:
            raise MissingFeature("attach = 'tcx': this kernel has no TCX (Linux 6.6)", "set attach = 'auto'")
        self.tcx = config.attach == "tcx" or (config.attach == "auto" and has_tcx)
        self.adopted = bool(self.state()["boot"])
        if not self.adopted:
            self._start_boot()
        self.boot = int(self.state()["boot"])

    @property
    def scope(self) -> int:
        """What the hooks are attached to, as a number: counters of another scope are not continued."""
        root = (self._config.cgroup_root or cgroup_mount()).stat().st_ino
        interfaces = sorted(self._config.host_interfaces)
        return zlib.crc32(repr((cookie(self._config.netns), root, self.tcx, interfaces)).encode())

    def _start_boot(self) -> None:
        self.give_free_accounts(set(range(self._config.accounts)) | self.take_free_accounts(), {0})
        self.write_state(boot=time.time_ns())

    def program(self, name: str) -> int:
        return self._object.program(name)

    def programs(self) -> dict[str, int]:
        """Name → descriptor of every program, for measuring what they cost."""
        return {name: self.program(name) for name in _PROGRAMS}

    def map(self, name: str) -> Map:
        return self._object.maps[name]

    def state(self) -> Any:
        """The current `meter_state` record."""
        value = self.map("state").lookup(_FIRST)
        assert value is not None
        return np.frombuffer(value, record("meter_state"))[0]

    def write_state(self, **fields: int) -> None:
        """Change fields of `meter_state`; the probe is its only writer, from more than one thread."""
        with self._lock:
            state = self.state().copy()
            for name, value in fields.items():
                state[name] = value
            self.map("state").update(_FIRST, state.tobytes())

    # -- hooks ---------------------------------------------------------------------------------------------

    def _attach_cgroups(self) -> None:
        root = attach.open_cgroup(self._config.cgroup_root or cgroup_mount())
        try:
            for name, kind in (
                ("cgroup_ingress", attach.CGROUP_INGRESS),
                ("cgroup_egress", attach.CGROUP_EGRESS),
            ):
                attach.pinned_link(self._pins / name, self.program(name), root, kind)
        finally:
            os.close(root)

    def _attach_interface(self, name: str) -> None:
        with inside(self._config.netns):
            ifindex = socket.if_nametoindex(name)
        key = ifindex.to_bytes(4, "little")
        interfaces = self.map("interfaces")
        if interfaces.lookup(key) is None:
            interfaces.update(key, bytes(interfaces.value_size * interfaces.cpus))
        self._attach(ifindex, "interface")

    def _attach(self, ifindex: int, kind: str) -> bool:
        """Attach both directions; True where both links were there already."""
        taken_over = True
        with inside(self._config.netns):
            for direction, point in (("ingress", attach.TCX_INGRESS), ("egress", attach.TCX_EGRESS)):
                program = self.program(f"{kind}_{direction}")
                if not self.tcx:
                    self._note_filter(ifindex, attached=True)
                    attach.clsact_filter(program, ifindex, direction == "egress", self._handle)
                    continue
                pin = self._pins / f"{kind}-{ifindex}-{direction}"
                taken_over &= attach.pinned_link(pin, program, ifindex, point)
        return taken_over and self.tcx

    def attach_port(self, ifindex: int) -> bool:
        """Start counting at a port; call `set_port` first. True where a pinned link already did."""
        return self._attach(ifindex, "port")

    def detach_port(self, ifindex: int) -> None:
        """Stop counting at a port, there or gone."""
        self.map("port_sources").delete(ifindex.to_bytes(4, "little"))
        for hook in ("ingress", "egress"):
            (self._pins / f"port-{ifindex}-{hook}").unlink(missing_ok=True)
        attach.unpin(self._pins / f"port-{ifindex}-xdp")
        if not self.tcx:
            with inside(self._config.netns):
                attach.remove_clsact_filters(ifindex, self._handle)
            self._note_filter(ifindex, attached=False)

    def _note_filter(self, ifindex: int, attached: bool) -> None:
        filters = pins.noted_filters(self._pins)
        if (ifindex in filters) != attached:
            pins.note_filters(self._pins, self._config.netns, filters ^ {ifindex})

    # -- whose -----------------------------------------------------------------------------------------------

    def open_account(self) -> int:
        """Take a free account, 0 where none is left."""
        account = self.map("free_accounts").pop()
        return int.from_bytes(account, "little") if account else 0

    def free_account(self, account: int) -> None:
        """Give an account back, its counters at zero; nothing may count in it any more."""
        accounts = self.map("accounts")
        for half in (0, 1):
            key = (account * 2 + half).to_bytes(4, "little")
            accounts.update(key, bytes(accounts.value_size * accounts.cpus))
        self.map("free_accounts").push(account.to_bytes(4, "little"))

    def take_free_accounts(self) -> set[int]:
        """Take all that are free, so that the kernel opens none until they are given back."""
        taken = set()
        while account := self.open_account():
            taken.add(account)
        return taken

    def give_free_accounts(self, free: set[int], used: set[int]) -> None:
        """Give back all that are not used; those in nobody's hands (a killed probe's) start at zero."""
        for account in sorted(set(range(self.map("accounts").max_entries // 2)) - used, reverse=True):
            if account in free:
                self.map("free_accounts").push(account.to_bytes(4, "little"))
            else:
                self.free_account(account)

    def set_port(self, ifindex: int, source: Source) -> None:
        self.map("port_sources").update(ifindex.to_bytes(4, "little"), source.pack("ENFORCE_PORT"))

    def port_sources(self) -> dict[int, Source]:
        """ifindex → source."""
        keys, values = self.map("port_sources").read(np.dtype("<u4"), record("source"))
        return {int(key): Source.unpack(value) for key, value in zip(keys, values, strict=True)}

    def add_cgroup(self, cgroup: int, source: Source) -> bool:
        """Enter a cgroup; False where the kernel was first and opened an account for it."""
        try:
            key, value = cgroup.to_bytes(8, "little"), source.pack("ENFORCE_CGROUP")
            self.map("cgroup_sources").update(key, value, BPF_NOEXIST)
        except KernelError as e:
            if e.errno == 17:
                return False
            raise
        return True

    def set_cgroup(self, cgroup: int, source: Source) -> None:
        self.map("cgroup_sources").update(cgroup.to_bytes(8, "little"), source.pack("ENFORCE_CGROUP"))

    def remove_cgroup(self, cgroup: int) -> None:
        self.map("cgroup_sources").delete(cgroup.to_bytes(8, "little"))

    def cgroup_accounts(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """cgroup ids, and the account of each."""
        keys, values = self.map("cgroup_sources").read(np.dtype("<u8"), record("source"))
        return keys, values["account"]

    def cgroup_sources(self) -> dict[int, Source]:
        """cgroup id → source."""
        keys, values = self.map("cgroup_sources").read(np.dtype("<u8"), record("source"))
        return {int(key): Source.unpack(value) for key, value in zip(keys, values, strict=True)}


def map_sizes(config: MeterConfig) -> dict[str, int]:
    """Map → entries, the same for every object that shares the maps."""
    by_source = ("port_sources", "cgroup_sources", "free_accounts", "evidence_rates")
    sizes = dict.fromkeys(by_source, config.accounts)
    sizes |= dict.fromkeys(("flows_even", "flows_odd"), config.flow_entries)
    return sizes | {"accounts": config.accounts * 2, "suspect_prefixes": config.suspect_entries}


def _tunables(config: MeterConfig) -> bytes:
    """The object's `tunables`, in their order."""
    known = cookie(config.netns) if features.cgroup_programs_see_netns_cookie() else 0
    inode = (config.netns or OWN).stat().st_ino
    return struct.pack("<QII", known, inode, bool(config.host_interfaces))
