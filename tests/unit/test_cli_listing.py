"""The listing verbs against an API: documents untouched, tables readable, errors on one line."""

import json
import socket
from collections.abc import Iterator

import pytest
from rich.console import Console

from eastwest import cli
from eastwest.cli import render
from tests.unit.cli_stub import Stub, entry, flow, host, label, serving

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A stub API that EASTWEST_URL points to."""
    with serving() as stub:
        monkeypatch.setenv("EASTWEST_URL", stub.url)
        monkeypatch.delenv("EASTWEST_TOKEN", raising=False)
        yield stub


@pytest.mark.parametrize(
    "verb", ["labels", "workloads", "ports", "flows", "talkers", "ledger", "hosts", "alerts"]
)
def test_json_is_the_api_document(api: Stub, capsys: Capture, verb: str) -> None:
    """--json prints one document, exactly the API's, and asks once."""
    document = [{"label": 2**53 + 1, "name": "über", "new_field": None}]
    api.answers[verb] = document
    assert cli.main([verb, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document
    assert [asked[:2] for asked in api.asked] == [("GET", verb)]


def test_labels_busiest_first_unattributed_last(api: Stub, capsys: Capture) -> None:
    """People see the busiest on top, in human units, and what nobody claimed at the end."""
    api.answers["labels"] = [
        label(0, "unattributed", kind="unattributed", ingress_bytes=9_000_000_000),
        label(7, "quiet"),
        label(8, "busy", tenant="red", egress_packets=1234, egress_bytes=1_500_000, suspect_egress_packets=3),
    ]
    assert cli.main(["labels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["busy", "quiet", "unattributed"]
    assert lines[2].split() == ["8", "busy", "netns", "red", "–", "–", "1.23", "k", "1.50", "MB", "3"]  # noqa: RUF001
    assert "host" not in lines[0]  # all say the same


def test_labels_all_is_passed_on(api: Stub) -> None:
    """--all asks for those that are gone, too."""
    api.answers["labels"] = []
    assert cli.main(["labels", "--all", "--json"]) == 0
    assert cli.main(["labels", "--json"]) == 0
    assert [asked[2] for asked in api.asked] == [{"all": ["true"]}, {}]


def test_flows_ask_what_was_said(api: Stub, capsys: Capture) -> None:
    """Selector, times and limit reach the API as they were given; rows are shown by size."""
    api.answers["flows"] = [
        flow(bytes=10, protocol=17),
        flow(bytes=9000, src="fd00::1", dst="fd00::2"),
        flow(bytes=42, protocol=0x0806, src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff", src_port=0),
    ]
    api.answers["labels"] = [label(7, "web-1")]
    arguments = ["--label", "tenant=a,name=w*", "--since", "1h", "--until", "5m", "--limit", "4"]
    assert cli.main(["flows", *arguments]) == 0
    query = {"label": ["tenant=a,name=w*"], "since": ["1h"], "until": ["5m"], "limit": ["4"]}
    assert api.asked[0][2] == query
    out, err = capsys.readouterr()
    lines = out.splitlines()[2:]
    assert err == ""
    assert lines[0].split()[2:4] == ["7", "web-1"]
    assert "[fd00::1]:4000" in lines[0]
    assert "9.00 kB" in lines[0]
    assert lines[0].rstrip().endswith("SA")
    assert " arp " in lines[1]
    assert " udp " in lines[2]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_flows_say_that_there_may_be_more(api: Stub, capsys: Capture, form: list[str]) -> None:
    """As many as were asked for: a line on stderr; the document is the API's all the same."""
    api.answers |= {"flows": [flow(), flow()], "labels": []}
    assert cli.main(["flows", "--limit", "2", *form]) == 0
    out, err = capsys.readouterr()
    assert err == "eastwest: only the latest 2 flows are shown; use --limit or a narrower --since\n"
    assert not form or json.loads(out) == [flow(), flow()]


def test_flows_as_lines_are_what_the_api_says(api: Stub, capsys: Capture) -> None:
    """Line by line, untouched; with the notice where there may be more, and not together with --json."""
    api.answers["flows/lines"] = b'{"label":1}\n{"label":2}\n'
    assert cli.main(["flows", "--json-lines", "--since", "1h", "--limit", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out == '{"label":1}\n{"label":2}\n'
    assert "only the latest 2 flows are shown" in shown.err
    assert api.asked[0][1:3] == ("flows/lines", {"since": ["1h"], "limit": ["2"]})
    assert cli.main(["flows", "--json-lines", "--json"]) == 2
    assert "one of --json and --json-lines" in capsys.readouterr().err


def test_flows_tell_their_default_limit(capsys: Capture) -> None:
    """In the help; and it is asked for."""
    assert cli.main(["flows", "--help"]) == 0
    assert "Only the latest N.  [default: 10000]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["--since", "5m", "--until", "1h"], "--since 5m is later than --until 1h"),
        (["--until", "1h"], "--since 5m is later than --until 1h"),
        (["--since", "2999-01-01T00:00:00Z"], "--since 2999-01-01T00:00:00Z is later than now"),
    ],
)
def test_flows_refuse_times_in_the_wrong_order(
    api: Stub, capsys: Capture, times: list[str], said: str
) -> None:
    """One line; nothing is asked."""
    assert cli.main(["flows", *times]) == 1
    assert capsys.readouterr().err == f"eastwest: {said}; give an earlier --since\n"
    assert api.asked == []


def test_talkers_ask_what_was_said(api: Stub, capsys: Capture) -> None:
    """Selector, times and limit reach the API as they were given; rows stay in its order, with names."""
    api.answers["talkers"] = [
        {"label": 7, "src": "10.0.0.1", "dst": "fd00::2", "packets": 1234, "bytes": 9000},
        {"label": 8, "src": "02:00:00:00:00:01", "dst": "ff:ff:ff:ff:ff:ff", "packets": 1, "bytes": 42},
    ]
    api.answers["labels"] = [label(7, "web-1")]
    arguments = ["--label", "tenant=a", "--since", "7d", "--until", "1d", "--limit", "2"]
    assert cli.main(["talkers", *arguments]) == 0
    assert api.asked[0][2] == {"label": ["tenant=a"], "since": ["7d"], "until": ["1d"], "limit": ["2"]}
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert first.split() == ["7", "web-1", "10.0.0.1", "fd00::2", "1.23", "k", "9.00", "kB"]
    assert second.split()[:3] == ["8", "–", "02:00:00:00:00:01"]  # noqa: RUF001
    assert cli.main(["talkers", "--json"]) == 0
    assert api.asked[-1][2] == {"limit": ["20"]}
    assert cli.main(["talkers", "--since", "5m", "--until", "1h"]) == 1
    assert cli.main(["talkers", "--label", "tennant=a"]) == 1
    assert len(api.asked) == 3


def test_workloads_that_are_gone(api: Stub, capsys: Capture) -> None:
    """--all asks for them; the table marks them, and puts in parentheses what a workload had before."""
    times = {"first_seen": "2024-01-01T00:00:00Z", "last_seen": "2024-01-01T00:00:00Z"}
    past = {"past_ports": ["tap0", "tap1"], "past_addresses": ["10.0.0.9"]}
    api.answers["workloads"] = [
        {"label": 7, "name": "old", "kind": "netns", "present": False, "ports": [], "addresses": []}
        | past
        | times,
        {"label": 8, "name": "web", "kind": "netns", "present": True, "ports": ["tap0"], "addresses": ["a"]}
        | past
        | times,
    ]
    assert cli.main(["workloads", "--all"]) == 0
    assert api.asked[0][2] == {"all": ["true"]}
    web, old = capsys.readouterr().out.splitlines()[2:]
    assert " ".join(web.split()).endswith("tap0, (tap1) a, (10.0.0.9)")
    assert " gone, seen " in old
    assert "(tap0), (tap1)" in old
    assert cli.main(["workloads"]) == 0
    assert "(tap1)" not in capsys.readouterr().out


def test_flows_refuse_a_bad_selector_at_once(api: Stub, capsys: Capture) -> None:
    """A selector that cannot be understood never leaves the command."""
    assert cli.main(["flows", "--label", "tennant=a"]) == 1
    assert "'tennant=a' is not a selector condition" in capsys.readouterr().err
    assert api.asked == []


def test_ledger_names_what_is_lost_and_wrong(api: Stub, capsys: Capture) -> None:
    """What does not balance comes first; losses by place; digits in full."""
    api.answers["ledger"] = [entry(7, 1_234_567, flow_map_full=7), entry(8, 5, False), entry(9, 0)]
    api.answers["labels"] = [label(7, "web"), label(8, "db"), label(9, "idle")]
    assert cli.main(["ledger"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["db", "web"]
    assert lines[0].split()[-1] == "NO"
    assert "1,234,567" in lines[1]
    assert "flow_map_full 7" in lines[1]


def test_hosts_show_cost_and_problems(api: Stub, capsys: Capture) -> None:
    """Own cost per packet is weighted by runs; problems are told in full."""
    api.answers["hosts"] = [host(problems=["no Open vSwitch; start it"])]
    assert cli.main(["hosts"]) == 0
    out = capsys.readouterr().out
    assert " 98 " in out  # (10 x 95.4 + 30 x 99.4) / 40
    assert "1.50 k" in out
    assert "h1: no Open vSwitch; start it" in out


def test_label_set_posts_typed_facts(api: Stub, capsys: Capture) -> None:
    """KEY=VALUE becomes JSON with a numeric service_id; the name is one path segment; one line answers."""
    said = {"tenant": "red", "network": None, "service": "x=y", "service_id": 42, "class": "suspect"}
    api.answers["labels/a/b c"] = {"label": 7, "name": "a/b c", "facts": said}
    arguments = ["a/b c", "tenant=red", "service_id=42", "class=suspect", "service=x=y"]
    assert cli.main(["label", "set", *arguments]) == 0
    facts = {"tenant": "red", "service_id": 42, "class": "suspect", "service": "x=y"}
    assert api.asked == [("POST", "labels/a/b c", {}, facts)]
    told = "a/b c (label 7): tenant=red, service=x=y, service_id=42, class=suspect\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    "fact", ["foo", "foo=1", "service_id=x", "service_id=-1", "class=evil", "tenant=a,b"]
)
def test_label_set_refuses_wrong_facts(api: Stub, fact: str) -> None:
    """What cannot be a fact is wrong usage, and is not sent."""
    assert cli.main(["label", "set", "w", fact]) == 2
    assert api.asked == []


ALERT = {
    "id": "ab12", "state": "firing", "severity": "critical", "kind": "silence", "watch": "quiet",
    "first_seen": "2024-01-01T00:00:00Z", "resolved_at": None, "text": "web (label 7): no packet for 60 s",
}  # fmt: skip


def test_alerts_are_shown_and_kept_quiet(api: Stub, capsys: Capture) -> None:
    """One line each; --all and --since ask for those that are over; silences go by id or by selector."""
    api.answers["alerts"] = [ALERT]
    assert cli.main(["alerts"]) == 0
    (line,) = capsys.readouterr().out.splitlines()[2:]
    assert " ".join(line.split()).endswith("quiet 2024-01-01 00:00 web (label 7): no packet for 60 s")
    assert cli.main(["alerts", "--since", "2h", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [ALERT]
    assert cli.main(["alerts", "--all"]) == 0
    queries = [query for _, _, query, _ in api.asked]
    assert queries == [{}, {"all": ["true"], "since": ["2h"]}, {"all": ["true"], "since": ["1d"]}]
    silence = {
        "id": "cd34",
        "alert": "",
        "match": "tenant=a",
        "until": "2024-01-01T00:00:00Z",
        "comment": "x",
    }
    api.answers |= {"silences": silence, "silences/cd34": {"removed": "cd34"}}
    api.asked.clear()
    assert cli.main(["alerts", "silence", "tenant=a", "--for", "2h", "--comment", "x"]) == 0
    assert cli.main(["alerts", "silence", "ab12"]) == 0
    assert cli.main(["alerts", "unsilence", "cd34"]) == 0
    assert cli.main(["alerts", "silence", "colour=red"]) == 1
    assert [(asked[0], asked[1], asked[3]) for asked in api.asked] == [
        ("POST", "silences", {"match": "tenant=a", "duration": "2h", "comment": "x"}),
        ("POST", "silences", {"alert": "ab12", "duration": "1h", "comment": ""}),
        ("DELETE", "silences/cd34", None),
    ]
    api.answers["silences"] = [silence]
    capsys.readouterr()
    assert cli.main(["alerts", "silences", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [silence]


def test_watches_are_added_listed_and_removed(api: Stub, capsys: Capture) -> None:
    """What was said reaches the API; the list says how each stands and what it cannot judge."""
    watch = {
        "name": "busy", "match": "service=web", "condition": "rate_above", "threshold": 1000.0,
        "unit": "bytes", "direction": "both", "window_seconds": 30, "for_seconds": 10, "learn_seconds": 86400,
        "severity": "critical",
    }  # fmt: skip
    stands = {
        "source": "api",
        "state": "unknown",
        "workloads": 2,
        "alerts": 0,
        "unknown": {"7": "host h away"},
    }
    api.answers |= {"watches": watch | stands, "watches/busy": {"removed": "busy"}}
    more = ["--unit", "bytes", "--window", "30", "--for", "10", "--severity", "critical"]
    assert cli.main(["watch", "add", "busy", "service=web", "rate_above", "1000", *more]) == 0
    assert api.asked == [("POST", "watches", {}, watch)]
    assert capsys.readouterr().out == "watch busy: rate_above 1000 bytes/s both, 2 workloads now\n"
    assert cli.main(["watch", "rm", "busy"]) == 0
    assert api.asked[1][:2] == ("DELETE", "watches/busy")
    api.answers["watches"] = [watch | stands]
    assert cli.main(["watch", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2]) == [watch | stands]
    assert cli.main(["watch", "list"]) == 0
    out = capsys.readouterr().out
    assert "rate_above 1000 bytes/s both" in out
    assert out.splitlines()[-1] == "busy: cannot judge label 7: host h away"


@pytest.mark.parametrize("what", [["rate_above"], ["silence", "5"], ["loud", "5"], ["rate_above", "much"]])
def test_watch_add_refuses_wrong_usage(api: Stub, what: list[str]) -> None:
    """A threshold where there is one to give, and only there."""
    assert cli.main(["watch", "add", "w", "name=x", *what]) == 2
    assert api.asked == []


def test_api_error_is_one_line(api: Stub, capsys: Capture) -> None:
    """The API's error and remedy become the command's."""
    api.answers["flows"] = (400, {"error": "cannot read the time 'x'", "remedy": "write 5m"})
    assert cli.main(["flows"]) == 1
    assert capsys.readouterr() == ("", "eastwest: cannot read the time 'x'; write 5m\n")
    assert cli.main(["label", "set", "nobody", "tenant=a"]) == 1
    assert capsys.readouterr().err == "eastwest: no labels/nobody; look elsewhere\n"


def test_something_else_answers(api: Stub, capsys: Capture) -> None:
    """A server that is not eastwest's is named as such."""
    api.answers["hosts"] = (200, b"<html>")
    assert cli.main(["hosts"]) == 1
    assert capsys.readouterr().err.endswith("not as an eastwest server; correct EASTWEST_URL\n")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Where it looked, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("EASTWEST_URL", url)
    assert cli.main(["labels"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"eastwest: no eastwest server at {url} (")
    assert err.endswith("run `eastwest up`, or set EASTWEST_URL to where it is\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://"])
def test_url_that_is_none(monkeypatch: pytest.MonkeyPatch, capsys: Capture, url: str) -> None:
    """A wrong EASTWEST_URL is named, with an example."""
    monkeypatch.setenv("EASTWEST_URL", url)
    assert cli.main(["labels"]) == 1
    assert "write it like http://127.0.0.1:8470" in capsys.readouterr().err


def test_token_is_sent(api: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """EASTWEST_TOKEN goes with the request."""
    monkeypatch.setenv("EASTWEST_TOKEN", "s3cret")
    api.answers["hosts"] = []
    assert cli.main(["hosts", "--json"]) == 0
    assert api.headers[0]["Authorization"] == "Bearer s3cret"


def test_names_cannot_steer_the_terminal(capsys: Capture) -> None:
    """Control characters and markup in a name arrive as text."""
    rows = [{"name": "\x1b[31m[red]x[/red]"}]
    render.show_table([render.Column("name", render.field("name"))], rows, "nothing")
    assert capsys.readouterr().out.splitlines()[2].rstrip() == "?[31m[red]x[/red]"


def test_narrow_terminal_keeps_numbers(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """At 40 columns the long name is shortened, the number is not."""
    monkeypatch.setattr(
        render, "Console", lambda **_: Console(width=40, force_terminal=True, color_system=None)
    )
    columns = [
        render.Column("name", render.field("name"), keep=False),
        render.Column("bytes", render.field("bytes"), "right"),
    ]
    render.show_table(columns, [{"name": "n" * 80, "bytes": "123 456 789"}], "nothing")
    line = capsys.readouterr().out.splitlines()[2]
    assert "123 456 789" in line
    assert "…" in line
