"""What `suspect` and `enforce` ask of the API, and what they tell."""

import json
from collections.abc import Iterator

import pytest

from eastwest import cli
from tests.unit.cli_stub import Stub, serving

Capture = pytest.CaptureFixture[str]

ENTRY = {
    "what": "10.9.0.0/16", "why": "feed\x1b[2J", "sources": ["api", "/etc/feed"], "hosts": ["h1", "h2"],
    "pending": ["h4"], "added": "2024-01-01T00:00:00Z", "expires": None, "packets": 1234,
    "bytes": 1_500_000, "last_hit": None,
}  # fmt: skip


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    with serving() as stub:
        monkeypatch.setenv("EASTWEST_URL", stub.url)
        yield stub


def test_a_prefix_is_declared_for_a_time_with_a_reason(api: Stub, capsys: Capture) -> None:
    api.answers["suspect"] = ENTRY | {"expires": "2024-01-01T01:00:00Z"}
    assert cli.main(["suspect", "add", "10.9.1.2/16", "--for", "1h", "--why", "scan"]) == 0
    assert api.asked == [("POST", "suspect", {}, {"what": "10.9.1.2/16", "why": "scan", "for": "1h"})]
    assert capsys.readouterr().out.startswith("suspect: 10.9.0.0/16, until ")


def test_a_flow_is_written_in_three_words_and_taken_back(api: Stub, capsys: Capture) -> None:
    """One argument or three, it is one entry."""
    flow = "tcp 10.0.0.1:1234 10.0.0.2:80"
    api.answers["suspect"] = ENTRY | {"what": flow}
    assert cli.main(["suspect", "rm", *flow.split()]) == 0
    ((method, path, query, body),) = api.asked
    assert (method, path) == ("DELETE", "suspect")
    assert flow in (query.get("what", [""])[0], (body or {}).get("what"))
    assert capsys.readouterr().out == f"not suspect any more: {flow}\n"


def test_the_list_says_what_it_leaves_out_and_who_does_not_answer(api: Stub, capsys: Capture) -> None:
    """A reason that somebody put escape codes into cannot steer the terminal."""
    document = {"entries": [ENTRY], "left_out": 99_999, "unanswered": ["h3"]}
    api.answers["suspect"] = document
    assert cli.main(["suspect", "list"]) == 0
    shown = capsys.readouterr().out
    parts = ("10.9.0.0/16", "1.23 k", "api", "/etc/feed", "99,999", "h3", "h4")
    assert [part for part in parts if part not in shown] == []
    assert "\x1b" not in shown
    assert cli.main(["suspect", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_enforcing_says_whose_packets_are_dropped(api: Stub, capsys: Capture) -> None:
    """All of them, where the workload's own class is suspect."""
    workloads = [
        {"label": 7, "name": "web", "class": "normal"},
        {"label": 8, "name": "bad", "class": "suspect"},
    ]
    api.answers["enforcement"] = {"selector": "tenant=a", "workloads": workloads}
    assert cli.main(["enforce", "tenant=a"]) == 0
    assert api.asked == [("POST", "enforcement", {}, {"selector": "tenant=a"})]
    assert capsys.readouterr().out.splitlines() == [
        "enforced: tenant=a",
        "suspect packets are dropped of web (label 7)",
        "of class suspect, ALL packets are dropped of bad (label 8)",
    ]


def test_an_order_is_taken_back(api: Stub, capsys: Capture) -> None:
    api.answers["enforcement"] = {"selector": "tenant=a", "workloads": []}
    assert cli.main(["enforce", "tenant=a", "--off"]) == 0
    assert api.asked[0][0] == "DELETE"
    assert capsys.readouterr().out == "not enforced any more: tenant=a\n"


def test_what_cannot_be_enforced_is_listed_with_the_reason(api: Stub, capsys: Capture) -> None:
    source = {"label": 7, "name": "web", "host": "h1", "hook": "port", "port": "tap0", "state": "refused"}
    document = {
        "selectors": ["tenant=a"],
        "stale": ["tenant=b"],
        "sources": [source | {"reason": "another XDP program is on tap0"}],
        "unanswered": [],
    }
    api.answers["enforcement"] = document
    assert cli.main(["enforce", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("enforced: tenant=a", "tap0", "refused", "another XDP program"))
    assert "but enforced by probes: tenant=b; end it with --off\n" in shown
    assert cli.main(["enforce", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document


@pytest.mark.parametrize("arguments", [[], ["x=y", "--list"], ["--off"], ["name=a", "--json"]])
def test_half_an_order_is_wrong_usage(api: Stub, arguments: list[str]) -> None:
    assert cli.main(["enforce", *arguments]) == 2
    assert api.asked == []
