"""B9: what an unprivileged process in a workload can try, to be counted as somebody else."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import Workload
from tests.system.bus_server import RunningServer
from tests.system.test_probe import harness, with_server

# Enters its cgroup as root, becomes nobody without capabilities, and then tries. Prints what succeeded.
_ATTACKER = """
import ctypes, os, socket, sys
own, other, bpffs, count = sys.argv[1:]
open(own + '/cgroup.procs', 'w').write('0')
os.setgroups([]); os.setgid(65534); os.setuid(65534)
libc = ctypes.CDLL(None, use_errno=True)

def move():
    open(other + '/cgroup.procs', 'w').write('0')

def new_cgroup():
    os.mkdir(own + '/mine.scope')

def pinned():
    os.listdir(bpffs)

def bpf():
    attributes = (ctypes.c_uint32 * 32)()  # BPF_MAP_GET_NEXT_ID from 0 walks everybody's maps
    if libc.syscall(321, 12, attributes, 128) < 0:
        raise OSError(ctypes.get_errno(), 'bpf')

def packet_socket():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)

def mark():
    socket.socket().setsockopt(socket.SOL_SOCKET, 36, 7)

def other_namespace():
    if libc.setns(os.open('/proc/1/ns/net', os.O_RDONLY), 0x40000000):
        raise OSError(ctypes.get_errno(), 'setns')

succeeded = []
for attempt in (move, new_cgroup, pinned, bpf, packet_socket, mark, other_namespace):
    try:
        attempt()
        succeeded.append(attempt.__name__)
    except OSError:
        pass
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 0))
for _ in range(int(count)):
    s.sendto(bytes(72), s.getsockname())
    s.recv(100)
print(succeeded)
"""


def test_an_unprivileged_process_stays_under_its_label(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Every attempt fails, and all that it sends is booked to the workload it is in, exactly."""

    async def test(server: RunningServer, state: Path) -> None:
        own, other = cgroup / "own.scope", cgroup / "other.scope"
        own.mkdir()
        other.mkdir()
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns):
                label = await h.knows("own")
                command = ["nsenter", f"--net={netns}", sys.executable, "-c", _ATTACKER]
                arguments = [str(own), str(other), str(state / "bpf"), "25"]
                attempts = subprocess.run(command + arguments, check=True, capture_output=True, text=True)
                assert attempts.stdout == "[]\n"
                await h.becomes({label: 50})

    with_server(tmp_path, test)
