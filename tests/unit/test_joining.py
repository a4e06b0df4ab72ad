"""Claims of several sources become workloads: one each, whoever speaks of it."""

from eastwest.bus.messages import Facts
from eastwest.inventory.joining import Handle, join
from eastwest.inventory.model import Claim, Found

VM = "vm:6a0b1c9e-0000-4000-8000-000000000001"
OTHER = "vm:6a0b1c9e-0000-4000-8000-000000000002"


def test_the_first_names_it_and_the_others_add_what_they_know() -> None:
    """libvirt has the name and tenant, the process its cgroup, and both are found by the same tap."""
    libvirt = Claim(VM, "vm", "web", Facts(tenant="a"), devices=frozenset({"tap0"}))
    qemu = Claim(VM, "vm", "web-qemu", devices=frozenset({"tap0"}), cgroup="/vm", sockets=True)
    joined = join([libvirt, qemu])
    web = Found(VM, "vm", "web", "/vm", Facts(tenant="a"))
    assert joined.workloads == {VM: web}
    assert joined.owners == {Handle("device", "tap0"): web, Handle("cgroup", "/vm"): web}


def test_an_identity_that_was_made_up_gives_way() -> None:
    """A process without a uuid is the domain whose tap it holds."""
    joined = join(
        [
            Claim(VM, "vm", "web", devices=frozenset({"tap0"})),
            Claim("qemu:x", "vm", "x", devices=frozenset({"tap0", "tap1"})),
        ]
    )
    assert list(joined.workloads) == [VM]
    assert joined.owners[Handle("device", "tap1")].identity == VM


def test_two_that_claim_the_same_interface_stay_two() -> None:
    """It is the first one's, and the contradiction is said."""
    joined = join(
        [
            Claim(VM, "vm", "web", devices=frozenset({"tap0"})),
            Claim(OTHER, "vm", "db", devices=frozenset({"tap0", "tap1"})),
        ]
    )
    assert set(joined.workloads) == {VM, OTHER}
    assert joined.owners[Handle("device", "tap0")].identity == VM
    assert joined.owners[Handle("device", "tap1")].identity == OTHER
    (problem,) = joined.problems
    assert "tap0" in problem


def test_hundreds_of_contradictions_are_a_few_lines() -> None:
    claims = [Claim(f"vm:{n}", "vm", str(n), devices=frozenset({"tap0"})) for n in range(500)]
    joined = join(claims)
    assert (len(joined.workloads), len(joined.problems)) == (500, 5)


def test_hearsay_makes_no_workload_by_itself() -> None:
    """A switch's word is kept by interface: facts for its owner, a name where nobody else has one."""
    joined = join([], [Claim("port:7", "port", "p", Facts(network="10"), devices=frozenset({"veth1"}))])
    assert joined.workloads == {}
    assert joined.hearsay == {"veth1": Found("port:7", "port", "p", "", Facts(network="10"))}


def test_a_cgroup_without_sockets_of_its_own_is_no_handle() -> None:
    """Two emulators started from one shell share its cgroup; neither is the other."""
    claims = [Claim(one, "vm", one, cgroup="/user.slice/session-1.scope") for one in (VM, OTHER)]
    joined = join(claims)
    assert (set(joined.workloads), joined.owners, joined.problems) == ({VM, OTHER}, {}, [])
