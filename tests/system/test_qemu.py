"""Real QEMU processes, told by the kernel as they start and end: names, taps, cgroups."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eastwest.inventory import qemu
from eastwest.inventory.emulator import Emulator as Emulation
from eastwest.inventory.emulator import View
from eastwest.inventory.model import Claim
from eastwest.inventory.qemu import Qemu
from eastwest.inventory.scope import Scope
from eastwest.kernel.netns import host_boot
from eastwest.meter.check import cgroup_mount
from tests.conftest import require
from tests.system.bus_server import until
from tests.system.guest import EMPTY, Emulator

UUID = "6c1f5a0e-8a51-4c55-9d0c-0f5b8e3f9a11"


@pytest.fixture(autouse=True)
def installed(root: None) -> None:
    require(shutil.which("qemu-system-x86_64"), "needs QEMU: apt-get install qemu-system-x86")


class Watched:
    """A source at work, and what it says."""

    def __init__(self, source: Qemu) -> None:
        self.source = source

    @property
    def claims(self) -> dict[str, Claim]:
        return {claim.identity: claim for claim in self.source.claims}

    async def become(self, condition: Callable[[dict[str, Claim]], bool]) -> dict[str, Claim]:
        """Wait until what is claimed is as wanted."""

        async def answer() -> bool:
            return condition(self.claims)

        try:
            await until(answer, 60)
        except TimeoutError:
            raise AssertionError(f"{self.claims}, {self.source.problem}") from None
        return self.claims


@asynccontextmanager
async def watching(netns: Path, root: Path) -> AsyncIterator[Watched]:
    mount = cgroup_mount()
    source = Qemu(Scope(netns, f"/{root.relative_to(mount)}"), mount)
    task = asyncio.create_task(source.run(lambda: None))
    try:
        await asyncio.wait_for(source.answered.wait(), 60)
        yield Watched(source)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def watch(netns: Path, root: Path, test: Callable[[Watched], Awaitable[None]]) -> None:
    """Run an async test with a source of its own; no descriptor is left open."""

    async def main() -> None:
        before = descriptors()
        async with watching(netns, root) as watched:
            await test(watched)
        assert descriptors() == before

    asyncio.run(main())


def place(cgroup: Path, name: str) -> Path:
    """A cgroup of its own for an emulator."""
    (cgroup / name).mkdir()
    return cgroup / name


def test_a_vm_with_a_tap_has_it_from_the_moment_it_is_there(netns: Path, cgroup: Path) -> None:
    """By its UUID, and with the tap that it opens after its start; killed, it is gone."""
    tap = f"t{secrets.token_hex(4)}"
    network = ("-nic", f"tap,ifname={tap},script=no,downscript=no,vnet_hdr=off")

    async def test(watched: Watched) -> None:
        assert watched.claims == {}
        with Emulator(netns, *EMPTY, "-name", "web", "-uuid", UUID, *network, cgroup=place(cgroup, "a")):
            found = await watched.become(lambda claims: any(claim.devices for claim in claims.values()))
            wanted = Claim(f"vm:{UUID}", "vm", "web", devices=frozenset({tap}), cgroup="/a", sockets=False)
            assert found == {f"vm:{UUID}": wanted}
        await watched.become(lambda claims: not claims)
        assert watched.source.problem is None

    watch(netns, cgroup, test)


def test_a_vm_that_was_there_before_is_found(netns: Path, cgroup: Path) -> None:
    """By one look at /proc when the source starts; its end is heard of all the same."""
    with Emulator(netns, *EMPTY, "-nic", "none", "-name", "early") as emulator:

        async def test(watched: Watched) -> None:
            await watched.become(lambda claims: list(claims) == ["qemu:early"])
            emulator.process.kill()
            await watched.become(lambda claims: not claims)

        watch(netns, cgroup, test)


def test_user_mode_networking_is_the_vms_where_its_cgroup_is(netns: Path, cgroup: Path) -> None:
    """In a cgroup of its own the emulator's sockets are the VM's; once another process enters, no more."""
    own = place(cgroup, "own")

    async def test(watched: Watched) -> None:
        with Emulator(netns, *EMPTY, "-nic", "user", "-name", "nat", cgroup=own):
            found = await watched.become(lambda claims: "qemu:nat" in claims)
            assert found["qemu:nat"] == Claim("qemu:nat", "vm", "nat", cgroup="/own", sockets=True)
            stranger = subprocess.Popen(["sleep", "600"])
            try:
                (own / "cgroup.procs").write_text(str(stranger.pid))
                watched.source.taps_changed()
                found = await watched.become(lambda claims: not claims["qemu:nat"].sockets)
                assert found["qemu:nat"].cgroup == ""
                assert "systemd-run --scope" in (watched.source.problem or "")
                assert f"pid {stranger.pid}" in (watched.source.problem or "")
            finally:
                stranger.kill()
                stranger.wait()
            watched.source.taps_changed()
            await watched.become(lambda claims: claims["qemu:nat"].sockets)
            assert watched.source.problem is None

    watch(netns, cgroup, test)


def test_threads_in_cgroups_of_their_own_are_the_emulators(netns: Path, cgroup: Path) -> None:
    """As libvirt makes them: any thread may make a socket, so the cgroup is that of the whole process."""
    own = place(cgroup, "own")
    with Emulator(netns, *EMPTY, "-nic", "user", "-name", "nat", cgroup=own) as emulator:
        asyncio.run(until(lambda: _holds(own, emulator.pid)))
        (own / "emulator").mkdir()
        (own / "emulator/cgroup.type").write_text("threaded")
        (own / "emulator/cgroup.threads").write_text(str(emulator.pid))
        assert "/own/emulator" in Path(f"/proc/{emulator.pid}/cgroup").read_text()

        async def test(watched: Watched) -> None:
            found = await watched.become(lambda claims: "qemu:nat" in claims)
            assert found["qemu:nat"] == Claim("qemu:nat", "vm", "nat", cgroup="/own", sockets=True)
            emulator.process.kill()
            await watched.become(lambda claims: not claims)

        watch(netns, cgroup, test)


def test_an_emulator_in_a_container_claims_no_sockets(netns: Path, cgroup: Path) -> None:
    """Else whoever may run programs in a container could give its traffic to a VM of any name."""
    container = place(cgroup, f"libpod-{secrets.token_hex(32)}.scope")

    async def test(watched: Watched) -> None:
        with Emulator(netns, *EMPTY, "-nic", "user", "-name", "nat", cgroup=place(container, "inner")):
            found = await watched.become(lambda claims: "qemu:nat" in claims)
            assert (found["qemu:nat"].cgroup, found["qemu:nat"].sockets) == ("", False)
            assert watched.source.problem is None

    watch(netns, cgroup, test)


def test_an_emulator_in_the_scopes_root_claims_no_sockets(netns: Path, cgroup: Path) -> None:
    """Whatever else is started there would be taken for the VM."""

    async def test(watched: Watched) -> None:
        with Emulator(netns, *EMPTY, "-nic", "user", "-name", "nat", cgroup=cgroup):
            found = await watched.become(lambda claims: "qemu:nat" in claims)
            assert (found["qemu:nat"].cgroup, found["qemu:nat"].sockets) == ("", False)
            assert "cgroup of its own" in (watched.source.problem or "")

    watch(netns, cgroup, test)


def test_of_two_with_one_name_the_first_keeps_it(netns: Path, cgroup: Path) -> None:
    """The other goes by pid and start, for the life of each; it is said how to mend that."""

    async def test(watched: Watched) -> None:
        with Emulator(netns, *EMPTY, "-nic", "none", "-name", "twin") as first:
            await watched.become(lambda claims: list(claims) == ["qemu:twin"])
            with Emulator(netns, *EMPTY, "-nic", "none", "-name", "twin") as second:
                found = await watched.become(lambda claims: len(claims) == 2)
                (other,) = found.keys() - {"qemu:twin"}
                assert other.startswith(f"qemu:{host_boot()}:{second.pid}:")
                assert "-uuid" in (watched.source.problem or "")
                first.kill()
                assert list(await watched.become(lambda claims: len(claims) == 1)) == [other]
        await watched.become(lambda claims: not claims)

    watch(netns, cgroup, test)


def test_other_namespaces_and_other_programs_of_qemu_are_no_vms_here(netns: Path, cgroup: Path) -> None:
    """An emulator elsewhere, one that only answers questions, and a disk tool: none is claimed."""
    elsewhere = Path("/proc/self/ns/net")

    async def test(watched: Watched) -> None:
        with (
            Emulator(elsewhere, *EMPTY, "-nic", "none", "-name", "elsewhere"),
            Emulator(netns, "-S", "-machine", "none", "-nodefaults", "-name", "asked"),
            Emulator(netns, *EMPTY, "-nic", "none", "-name", "here"),
        ):
            await watched.become(lambda claims: list(claims) == ["qemu:here"])

    watch(netns, cgroup, test)


def test_an_emulator_that_goes_to_the_background_is_followed(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """It goes on as a child of its child, of which the kernel told nothing: the same VM, with its sockets."""
    note = tmp_path / "pid"

    async def test(watched: Watched) -> None:
        arguments = ("-nic", "user", "-name", "back", "-daemonize", "-pidfile", str(note))
        with Emulator(netns, *EMPTY, *arguments, cgroup=place(cgroup, "own")) as emulator:
            await asyncio.to_thread(emulator.process.wait, 60)
            pid = int(note.read_text())
            try:
                wanted = Claim("qemu:back", "vm", "back", cgroup="/own", sockets=True)
                await watched.become(lambda claims: claims == {"qemu:back": wanted})
                assert watched.source.problem is None
            finally:
                os.kill(pid, signal.SIGKILL)
            await watched.become(lambda claims: not claims)
            await until(lambda: _empty(cgroup / "own"))

    watch(netns, cgroup, test)


async def _holds(cgroup: Path, pid: int) -> bool:
    return str(pid) in (cgroup / "cgroup.procs").read_text().split()


async def _empty(cgroup: Path) -> bool:
    return "populated 0" in (cgroup / "cgroup.events").read_text()


def test_without_the_kernels_word_it_looks_for_itself(
    netns: Path, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the program cannot be loaded: found all the same, and said why it takes longer."""
    monkeypatch.setattr(qemu, "PROCESSES_OBJECT", tmp_path / "missing.bpf.o")
    monkeypatch.setattr(qemu, "_SCAN_SECONDS", 0.2)

    async def test(watched: Watched) -> None:
        assert "looked for every 0.2 s" in (watched.source.problem or "")
        with Emulator(netns, *EMPTY, "-nic", "none", "-name", "slow"):
            await watched.become(lambda claims: list(claims) == ["qemu:slow"])
        await watched.become(lambda claims: not claims)

    watch(netns, cgroup, test)


def test_more_emulators_than_are_followed_are_said_and_wait(
    netns: Path, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one ends there is room for another."""
    monkeypatch.setattr(qemu, "_MOST_GUESTS", 1)

    async def test(watched: Watched) -> None:
        with Emulator(netns, *EMPTY, "-nic", "none", "-name", "first") as first:
            await watched.become(lambda claims: list(claims) == ["qemu:first"])
            with Emulator(netns, *EMPTY, "-nic", "none", "-name", "second"):
                await watched.become(lambda _: "1 emulators more than" in (watched.source.problem or ""))
                assert list(watched.claims) == ["qemu:first"]
                first.kill()
                await watched.become(lambda claims: list(claims) == ["qemu:second"])
        await watched.become(lambda claims: not claims)

    watch(netns, cgroup, test)


def test_a_process_that_may_not_be_looked_at_is_said(
    netns: Path, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried again as long as it is there. The refusal is made up: root is never refused."""
    refused = [True]
    real = qemu.read

    def reading(pid: int, view: View) -> Emulation | None:
        if refused[0]:
            raise PermissionError
        return real(pid, view)

    monkeypatch.setattr(qemu, "read", reading)
    monkeypatch.setattr(qemu, "_AGAIN_SECONDS", 0.2)

    async def test(watched: Watched) -> None:
        with Emulator(netns, *EMPTY, "-nic", "none", "-name", "hidden"):
            await watched.become(lambda _: "CAP_SYS_PTRACE" in (watched.source.problem or ""))
            refused.clear()
            refused.append(False)
            await watched.become(
                lambda claims: list(claims) == ["qemu:hidden"] and watched.source.problem is None
            )
        refused[0] = True
        with Emulator(netns, *EMPTY, "-nic", "none", "-name", "brief"):
            await watched.become(lambda _: "CAP_SYS_PTRACE" in (watched.source.problem or ""))
        await watched.become(lambda _: watched.source.problem is None)

    watch(netns, cgroup, test)


def test_an_emulator_under_another_name_is_found_by_its_file(netns: Path, cgroup: Path) -> None:
    """`-name process=` gives it a name that the first look at /proc does not know."""
    arguments = ("-nic", "none", "-name", "guest=web,process=other")
    with Emulator(netns, *EMPTY, *arguments) as emulator:
        comm = Path(f"/proc/{emulator.pid}/comm")
        asyncio.run(until(lambda: _says(comm, "other\n")))

        async def test(watched: Watched) -> None:
            await watched.become(lambda claims: list(claims) == ["qemu:web"])

        watch(netns, cgroup, test)


async def _says(file: Path, text: str) -> bool:
    return file.read_text() == text
