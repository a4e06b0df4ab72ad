"""Containers, where no daemon is needed to know them."""

import pytest

from eastwest.inventory.containers import container_of

ID = "0123456789abcdef" * 4
OTHER = "f" * 64


@pytest.mark.parametrize(
    "path",
    [
        f"/libpod_parent/libpod-{ID}",
        f"/machine.slice/libpod-{ID}.scope",
        f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope",
        f"/system.slice/web.service/libpod-payload-{ID}",
        f"/docker/{ID}",
        f"/system.slice/docker-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/crio-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/cri-containerd-{ID}.scope",
        f"/kubepods/burstable/pod6c2f1d0a-0000-4000-8000-000000000000/{ID}",
        f"/system.slice/nerdctl-{ID}.scope",
    ],
)
def test_a_container_is_known_by_its_cgroup(path: str) -> None:
    """Podman, docker, cri-o and containerd each name the cgroup; what lies in it belongs to it."""
    assert container_of(path) == ID
    assert container_of(f"{path}/container") == ID
    assert container_of(f"{path}/init.scope/system.slice/cron.service") == ID


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/system.slice/ssh.service",
        f"/libpod_parent/libpod-conmon-{ID}",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/kubepods.slice/crio-conmon-{ID}.scope",
        f"/machine.slice/machine-libpod_pod_{ID}.slice",
        f"/docker/{ID[:-1]}",
        f"/docker/{ID}0",
        f"/docker/{ID.upper()}",
        f"/docker/{ID}\n",
        f"/user.slice/run-{ID}.scope",
    ],
)
def test_others_are_no_container(path: str) -> None:
    """Monitors, pods, and names that only look like an id."""
    assert container_of(path) is None


def test_a_container_cannot_name_another() -> None:
    """A cgroup made inside a container belongs to that container, whatever it is called."""
    assert container_of(f"/libpod_parent/libpod-{ID}/libpod_parent/libpod-{OTHER}") == ID
