"""Attaching programs: TCX and cgroup links, which can be pinned, and clsact filters, which stay anyway."""

import os
from pathlib import Path
from typing import Any

from eastwest.errors import KernelError
from eastwest.kernel._libbpf import ffi, lib
from eastwest.kernel.libbpf import ENOENT, checked, error

# enum bpf_attach_type; written out because TCX (Linux 6.6) is younger than the headers this must build with.
CGROUP_INGRESS, CGROUP_EGRESS, XDP, TCX_INGRESS, TCX_EGRESS = 0, 1, 37, 46, 47
_CLSACT_INGRESS, _CLSACT_EGRESS, _CLSACT = 1, 2, 3
_FILTER_PRIORITY = 0xEA57
_REPLACE = 1
_EEXIST, _EBUSY = 17, 16
_XDP_FLAGS_SKB_MODE = 2


def link(program: int, target: int, attach_type: int) -> int:
    """Attach to an interface (by index) or a cgroup (by descriptor); the link lives as long as the result.

    XDP is attached in generic mode, which every interface has.
    """
    options = ffi.NULL
    if attach_type == XDP:
        size = ffi.sizeof("struct bpf_link_create_opts")
        options = ffi.new("struct bpf_link_create_opts *", {"sz": size, "flags": _XDP_FLAGS_SKB_MODE})
    result = lib.bpf_link_create(program, target, attach_type, options)
    if attach_type == XDP and result in (-_EBUSY, -_EEXIST):
        raise KernelError("another XDP program is attached there", "detach that one", -result)
    return checked(result, "cannot attach a program")


def pinned_link(pin: Path, program: int, target: int, attach_type: int) -> bool:
    """Attach for longer than this process: take over the link pinned at `pin` (True), or make and pin one."""
    if pin.exists():
        old = checked(lib.bpf_obj_get(str(pin).encode()), f"cannot open {pin}")
        try:
            # ENOLINK: its interface or cgroup is gone, only the name is left.
            if lib.bpf_link_update(old, program, ffi.NULL) == 0:
                return True
            pin.unlink()
        finally:
            os.close(old)
    fd = link(program, target, attach_type)
    try:
        checked(lib.bpf_obj_pin(fd, str(pin).encode()), f"cannot pin {pin}")
    finally:
        os.close(fd)
    return False


def unpin(pin: Path) -> None:
    """Take off what is pinned, at once; nothing where there is none.

    Removing the pin alone ends the link some time after: until then XDP has no room for another (EBUSY).
    """
    if not pin.exists():
        return
    link = lib.bpf_obj_get(str(pin).encode())
    if link >= 0:
        lib.bpf_link_detach(link)  # refused where its interface is gone
        os.close(link)
    pin.unlink()


def _hook(ifindex: int, point: int) -> Any:
    return ffi.new(
        "struct bpf_tc_hook *",
        {"sz": ffi.sizeof("struct bpf_tc_hook"), "ifindex": ifindex, "attach_point": point},
    )


def _filter(**fields: int) -> Any:
    fields |= {"priority": _FILTER_PRIORITY}
    return ffi.new("struct bpf_tc_opts *", {"sz": ffi.sizeof("struct bpf_tc_opts"), **fields})


def clsact_filter(program: int, ifindex: int, egress: bool, handle: int) -> None:
    """Attach as a classic filter, in the current network namespace, in place of one of this handle.

    Filters of one priority run one after the other, since each leaves the verdict to the next.
    """
    result = lib.bpf_tc_hook_create(_hook(ifindex, _CLSACT))
    if result not in (0, -_EEXIST):
        checked(result, "cannot make a clsact qdisc")
    hook = _hook(ifindex, _CLSACT_EGRESS if egress else _CLSACT_INGRESS)
    checked(
        lib.bpf_tc_attach(hook, _filter(prog_fd=program, flags=_REPLACE, handle=handle)),
        "cannot attach a filter",
    )


def remove_clsact_filters(ifindex: int, handle: int) -> None:
    """Remove the filters of this handle from an interface; the qdisc stays, others may use it."""
    for point in (_CLSACT_INGRESS, _CLSACT_EGRESS):
        result = lib.bpf_tc_detach(_hook(ifindex, point), _filter(handle=handle))
        if result not in (0, -ENOENT, -19, -22):  # ENODEV: interface gone; EINVAL: no clsact any more
            checked(result, "cannot remove a filter")


def mount_bpffs(path: Path) -> None:
    """Mount a BPF file system of our own at `path`, where none is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.is_mount() and lib.mount(
        b"eastwest", str(path).encode(), b"bpf", 0, ffi.from_buffer(b"mode=0700\0")
    ):
        raise error(f"cannot mount a BPF file system at {path}", ffi.errno, "CAP_SYS_ADMIN")


def unmount_bpffs(path: Path) -> None:
    """Unmount it: every pin in it goes, and with the pins what nothing else holds."""
    if path.is_mount() and lib.umount2(str(path).encode(), 0):
        raise error(f"cannot unmount {path}", ffi.errno, "CAP_SYS_ADMIN")


def has_tcx(program: int) -> bool:
    """Whether this kernel knows TCX: asked with an interface that cannot be, so that nothing is attached."""
    # ENODEV: looked for the interface; EINVAL: does not know the attach type.
    return bool(lib.bpf_link_create(program, 0x7FFFFFFF, TCX_INGRESS, ffi.NULL) == -19)


def open_cgroup(path: Path) -> int:
    """A descriptor of a cgroup directory."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise KernelError(f"cannot open cgroup {path}: {e.strerror}", "is cgroup v2 mounted there?") from None
