"""What the API makes of what it knows."""

import pytest

from eastwest.bus.messages import Port, Workload
from eastwest.errors import NotFoundError, RefusedError
from eastwest.manager import times, views
from eastwest.manager.fleet import Member
from eastwest.store.reads import COUNTERS, LabelTotal

NOW = 1_700_000_000_000_000_000


def _workload(label: int, name: str, present: bool = True, **other: object) -> Workload:
    told: dict[str, object] = {
        "label": label, "name": name, "kind": "cgroup", "host": "h", "tenant": "", "network": "",
        "service": "", "service_id": 0, "traffic_class": "normal", "ports": [], "addresses": [],
        "past_ports": [], "past_addresses": [], "cgroup": "/x", "present": present,
        "first_seen": 10, "last_seen": 20,
    }  # fmt: skip
    return Workload(**(told | other))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5m", NOW - 300 * 10**9),
        ("30s", NOW - 30 * 10**9),
        ("2h", NOW - 7200 * 10**9),
        ("1d", NOW - 86400 * 10**9),
        ("999999999d", 0),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-15T00:13:20+02:00", NOW),
        ("2023-11-14T22:13:20.000001Z", NOW + 1000),
        ("9999-12-31T23:59:59Z", 1 << 62),
        ("0001-01-01T00:00:00Z", 0),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert times.parse(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "m", "-5m", "5 m", "2023-11-14", "2023-11-14T22:13:20", "٣m", "now"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match=r"is not a time; write 30s, 5m"):
        times.parse(text, NOW)


def test_rfc3339_keeps_every_nanosecond() -> None:
    assert views.rfc3339(NOW + 123456789) == "2023-11-14T22:13:20.123456789Z"
    assert views.rfc3339((1 << 63) - 1) == "2262-04-11T23:47:16.854775807Z"
    assert views.rfc3339(0) is None


def test_unattributed_is_always_there() -> None:
    (row,) = views.labels([], [], gone_too=False)
    assert (row.label, row.name, row.kind, row.egress_packets) == (0, "unattributed", "unattributed", 0)


def test_labels_show_counters_of_the_unknown_and_hide_the_gone() -> None:
    """A label counted before its document arrives is shown; one that is gone only on request."""
    counters = dict.fromkeys(COUNTERS, 0) | {"egress_packets": 5}
    totals = [LabelTotal(2, counters, 5, 30), LabelTotal(3, counters, 1, 2)]
    found = [_workload(1, "a"), _workload(2, "b", present=False)]
    shown = views.labels(found, totals, gone_too=False)
    assert [(r.label, r.name, r.egress_packets) for r in shown] == [
        (0, "unattributed", 0), (1, "a", 0), (3, "label-3", 5),
    ]  # fmt: skip
    gone = views.labels(found, totals, gone_too=True)[2]
    assert (gone.name, gone.egress_packets) == ("b", 5)
    assert (gone.first_seen, gone.last_seen) == (views.rfc3339(5), views.rfc3339(30))


def test_selected_labels() -> None:
    """Selectors reach label 0, the gone, and past ports."""
    found = [
        _workload(1, "web-1", tenant="a", ports=[Port("veth1", 1, "")]),
        _workload(2, "web-2", tenant="b", present=False, past_ports=["veth1"]),
    ]
    assert views.selected(None, found) is None
    assert views.selected("", found) is None
    assert views.selected("name=web*", found) == [1, 2]
    assert views.selected("name=web*,tenant=a", found) == [1]
    assert views.selected("port=veth1", found) == [1, 2]
    assert views.selected("name=unattributed", found) == [0]
    assert views.selected("label=2", found) == [2]
    assert views.selected("tenant=c", found) == []


def test_named_workload_is_one() -> None:
    """By name or label; a present one wins over those that are gone; of several none is guessed."""
    found = [_workload(1, "a"), _workload(2, "a", present=False), _workload(3, "b"), _workload(4, "b")]
    assert views.named("a", found).label == 1
    assert views.named("2", found).label == 2
    assert views.named("4", found).label == 4
    with pytest.raises(NotFoundError, match="no workload 'c'"):
        views.named("c", found)
    with pytest.raises(RefusedError, match="give the label of one instead: 3, 4"):
        views.named("b", found)
    with pytest.raises(RefusedError, match="several workloads"):
        views.named("3", [*found, _workload(5, "3")])


def test_no_members_no_hosts() -> None:
    members: list[Member] = []
    assert views.hosts(members) == []
    assert views.ports([], members) == []
