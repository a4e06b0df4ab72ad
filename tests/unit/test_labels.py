"""Selectors, rules, and the registry of labels."""

import asyncio
from contextlib import AbstractContextManager, nullcontext

import pytest

from eastwest.bus.messages import Facts, Port
from eastwest.errors import BusError, ConfigError, RefusedError
from eastwest.inventory.model import Found, Present
from eastwest.labels.registry import BLOCK, Registry
from eastwest.labels.rules import Rule
from eastwest.labels.selector import Selector

WEB = {"name": "web-1", "tenant": "a", "label": 7, "port": ["tap0", "tap1"]}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("name=web-1", True),
        ("name=web*", True),
        ("name=*", True),
        ("name=web", False),
        ("name=web-[1]", False),
        ("name=web-?", False),
        ("tenant=a,name=web*", True),
        ("tenant=b,name=web*", False),
        ("label=7", True),
        ("label=77", False),
        ("port=tap1", True),
        ("port=tap2", False),
        ("service=", True),
    ],
)
def test_a_selector_selects(text: str, selected: bool) -> None:
    """All conditions hold; only `*` is special; any of several ports will do."""
    assert Selector.parse(text).matches(WEB) is selected


@pytest.mark.parametrize("text", ["web", "color=red", "name", "=x"])
def test_what_is_no_selector_is_refused_with_the_known_keys(text: str) -> None:
    with pytest.raises(RefusedError, match="label, name, kind, tenant"):
        Selector.parse(text)


def test_a_rule_that_cannot_match_is_refused_when_it_is_read() -> None:
    with pytest.raises(ConfigError, match="color=red"):
        Rule(match="color=red")


def test_later_facts_win_where_they_say_something() -> None:
    first, second, third = Facts(tenant="a", service="x"), Facts(service="y"), Facts(service_id=3)
    assert third.over(second.over(first)) == Facts(tenant="a", service="y", service_id=3)


class Memory:
    """A journal in memory."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.rows: dict[str, tuple[bool, bytes]] = {}

    def transaction(self) -> AbstractContextManager[None]:
        return nullcontext()

    def number(self, name: str) -> int:
        return self.numbers.get(name, 0)

    def set_number(self, name: str, value: int) -> None:
        self.numbers[name] = value

    def present_workloads(self) -> list[bytes]:
        return [history for present, history in self.rows.values() if present]

    def workload(self, identity: str) -> bytes | None:
        return self.rows[identity][1] if identity in self.rows else None

    def keep_workload(self, identity: str, label: int, present: bool, history: bytes) -> None:
        self.rows[identity] = present, history


class Bucket:
    """A bucket in memory that loses the first `conflicts` races."""

    def __init__(self, conflicts: int = 0) -> None:
        self.entry: tuple[bytes, int] | None = None
        self.conflicts = conflicts

    async def get(self, key: str) -> tuple[bytes, int] | None:
        return self.entry

    async def create_or_update(self, key: str, value: bytes, revision: int | None) -> bool:
        if self.conflicts:
            self.conflicts -= 1
            self.entry = str(int(self.entry[0]) + BLOCK if self.entry else 1 + BLOCK).encode(), 1
            return False
        assert revision == (self.entry[1] if self.entry else None)
        self.entry = value, (revision or 0) + 1
        return True


def netns(name: str) -> Found:
    return Found(f"netns:{name}", "netns", name)


def leased(bucket: Bucket, memory: Memory) -> Registry:
    registry = Registry("h", [], memory)
    asyncio.run(registry.lease(bucket))
    return registry


def test_two_probes_never_give_the_same_label() -> None:
    """Blocks are leased by compare-and-set; a probe that loses the race takes the next one."""
    bucket = Bucket()
    first = leased(bucket, Memory())
    bucket.conflicts = 2  # somebody else takes two blocks meanwhile
    second = leased(bucket, Memory())
    assert (first.label(netns("a")), first.label(netns("b"))) == (1, 2)
    assert second.label(netns("a")) == 1 + 3 * BLOCK


def test_without_a_lease_there_is_no_label_and_a_used_up_block_gives_none() -> None:
    memory = Memory()
    assert Registry("h", [], memory).label(netns("a")) is None
    registry = leased(Bucket(), memory)
    given = [registry.label(netns(str(n))) for n in range(BLOCK + 1)]
    assert given == [*range(1, BLOCK + 1), None]


def test_the_last_label_is_the_end() -> None:
    bucket = Bucket()
    bucket.entry = str((1 << 32) - 5).encode(), 1
    with pytest.raises(BusError, match="labels are given"):
        leased(bucket, Memory())


def test_a_name_holds_while_only_the_kernel_speaks() -> None:
    """An engine's name and facts outlive its word; what it says next is taken, be it less."""
    registry = leased(Bucket(), Memory())
    digits = Found("container:0", "container", "0", "/0", nameless=True)
    label = registry.label(digits)
    assert label == 1
    web = Found("container:0", "container", "web", "/0", Facts(tenant="a"))
    for found, name, tenant in (
        (digits, "0", ""),
        (web, "web", "a"),
        (digits, "web", "a"),
        (Found("container:0", "container", "api", "/0"), "api", ""),
    ):
        registry.observe({found.identity: Present(found)}, 1)
        assert (registry.workload(label).name, registry.workload(label).tenant) == (name, tenant)


def test_facts_hold_as_long_as_somebody_has_not_spoken() -> None:
    """Names do not: whoever is there gives one."""
    registry = leased(Bucket(), Memory())
    said = Found("vm:1", "vm", "web", facts=Facts(tenant="a"))
    label = registry.label(said)
    assert label == 1
    less = Found("vm:1", "vm", "shop")
    for complete, tenant in ((False, "a"), (True, "")):
        registry.observe({"vm:1": Present(less)}, 1, complete)
        assert (registry.workload(label).name, registry.workload(label).tenant) == ("shop", tenant)


def test_history_outlives_memory() -> None:
    """Ports and addresses that were are kept as past; forgotten ones come back from disk with their label."""
    memory = Memory()
    registry = leased(Bucket(), memory)
    label = registry.label(netns("a"))
    assert label is not None
    registry.observe({"netns:a": Present(netns("a"), [Port("p1", 1, "m")])}, now=10)
    registry.saw_addresses(label, ["10.0.0.1"], now=11)
    registry.observe({"netns:a": Present(netns("a"), [Port("p2", 2, "m")])}, now=12)
    registry.observe({}, now=13)
    known = registry.workload(label)
    assert (known.present, known.ports, known.past_ports) == (False, [], ["p1", "p2"])
    assert (known.addresses, known.past_addresses, known.last_seen) == ([], ["10.0.0.1"], 13)
    registry.told()
    registry.forget_gone(before=14)
    assert registry.workloads() == []
    assert registry.label(netns("a")) == label
    assert registry.workload(label).past_ports == ["p1", "p2"]


def test_what_a_user_says_wins_over_rules() -> None:
    registry = Registry("h", [Rule(match="kind=netns", tenant="a", service="s")], memory := Memory())
    asyncio.run(registry.lease(Bucket()))
    label = registry.label(netns("x"))
    assert label is not None
    registry.say(label, Facts(tenant="b", traffic_class="suspect"))
    known = registry.workload(label)
    assert (known.tenant, known.service, known.traffic_class) == ("b", "s", "suspect")
    assert registry.traffic_class(label) == "suspect"
    again = Registry("h", [], memory)
    assert again.label(netns("x")) == label
    assert again.workload(label).tenant == "b"


def test_what_is_said_of_a_workload_that_is_gone_holds_when_it_comes_back() -> None:
    memory = Memory()
    registry = leased(Bucket(), memory)
    label = registry.label(netns("x"))
    assert label is not None
    registry.observe({}, now=2)
    later = Registry("h", [], memory)
    later.say(label, Facts(tenant="new"))
    assert later.label(netns("x")) == label
    assert later.workload(label).tenant == "new"


def test_after_a_power_cut_no_label_of_the_old_lease_is_given() -> None:
    """The disk may be behind: what is left of the block is thrown away."""
    memory = Memory()
    bucket = Bucket()
    registry = leased(bucket, memory)
    assert registry.label(netns("a")) == 1
    memory.numbers["label_next"] = 1  # as the disk had it before
    registry.discard_lease()
    assert registry.labels_left == 0
    asyncio.run(registry.lease(bucket))
    assert registry.label(netns("b")) == 1 + BLOCK


@pytest.mark.parametrize("key", ["tenant", "network", "service", "service_id"])
def test_a_rule_may_match_only_what_is_seen(key: str) -> None:
    with pytest.raises(ConfigError, match="what rules say"):
        Rule(match=f"{key}=a")
