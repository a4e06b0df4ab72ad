"""Configuration: precedence, and what a person is told of a mistake."""

from pathlib import Path

import pytest

from eastwest import cli
from eastwest.cli.config import ProbeSettings, load, text
from eastwest.cli.settings import Settings
from eastwest.errors import ConfigError

FULL = r"""
[probe]
host = "h1"
state_dir = "/tmp/x"
interval_seconds = 3
cgroup_patterns = ["*.slice"]

[bus]
url = "nats://10.0.0.1:4222"

[server]
listen = "127.0.0.1:9000"

[store]
url = "http://clickhouse:8123"

[[rule]]
match = "name=we\"b*"
tenant = "röd"
service_id = 7
class = "suspect"

[[rule]]
match = ""
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that says something in every section."""
    path = tmp_path / "e.toml"
    path.write_text(FULL)
    return path


def refusal(path: Path, content: str | bytes) -> str:
    """What is said of a file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as refused:
        load(Settings, path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value).replace(str(path), "FILE")


def test_defaults() -> None:
    """Without a file everything has its default, and the store lies below the state directory."""
    settings = load(Settings, None)
    assert settings.server.listen == "127.0.0.1:8470"
    assert settings.probe.state_dir == Path("/var/lib/eastwest")
    assert settings.store.path == Path("/var/lib/eastwest/store")


def test_file_over_defaults_and_flags_over_file(file: Path) -> None:
    """A file's word counts unless a flag says otherwise."""
    settings = load(Settings, file)
    assert settings.probe.state_dir == Path("/tmp/x")
    assert settings.probe.interval_seconds == 3.0
    assert settings.store.path is None
    assert [(r.match, r.tenant, r.service_id, r.traffic_class) for r in settings.rule] == [
        ('name=we"b*', "röd", 7, "suspect"),
        ("", None, None, None),
    ]
    settings = load(Settings, file, Path("/srv/e"), "[::1]:1")
    assert settings.probe.state_dir == Path("/srv/e")
    assert settings.server.listen == "[::1]:1"
    assert settings.bus.url == "nats://10.0.0.1:4222"


def test_state_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative --state-dir means the same to every role."""
    monkeypatch.chdir(tmp_path)
    settings = load(Settings, None, Path("state"))
    assert settings.probe.state_dir == tmp_path / "state"
    assert settings.store.path == tmp_path / "state" / "store"


def test_text_says_the_same(file: Path, tmp_path: Path) -> None:
    """What `up` writes for its roles reads back equal."""
    settings = load(Settings, file)
    (tmp_path / "again.toml").write_text(text(settings))
    assert load(Settings, tmp_path / "again.toml") == settings


def test_probe_reads_its_sections_only(file: Path) -> None:
    """A probe's settings need nothing of the server's."""
    file.write_text(FULL + "\n[collector]\nwhatever = 1\n")
    assert load(ProbeSettings, file).probe.host == "h1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[probe]\nhots = 1", "there is no setting 'probe.hots'; did you mean 'host'?"),
        ("[prob]\n", "there is no setting 'prob'; did you mean 'probe'?"),
        ("[[rule]]\nmatch = ''\nklass = 'x'", "there is no setting 'rule[0].klass'; did you mean 'class'?"),
        (
            "[export.prometheus]\nper_lable = true",
            "there is no setting 'export.prometheus.per_lable'; did you mean 'per_label'?",
        ),
        ("[server]\nlisten = 8470", "server.listen: expected 'str', got 'int'; correct server.listen"),
        ("[probe]\naccounts = '5'", "probe.accounts: expected 'int', got 'str'; correct probe.accounts"),
        ("[probe]\nstate_dir = 5", "probe.state_dir: expected a path; correct probe.state_dir"),
        ("probe = 5", "probe: expected a section, got 'int'; correct probe"),
        ("[[rule]]\ntenant = 'a'", "rule[0]: object missing required field 'match'; correct rule[0]"),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_key(tmp_path: Path, content: str, said: str) -> None:
    """File, key, and the key that was probably meant."""
    assert refusal(tmp_path / "e.toml", content) == f"FILE: {said}"


def test_unknown_key_far_from_all(tmp_path: Path) -> None:
    """Where nothing is near, the known keys are listed."""
    first = "alerts, bus, collector, detect, export, inventory, probe, rule, server"
    assert f"known here: {first}, store, streams, suspect, tap, watch" in refusal(tmp_path / "e", "xyzzy = 1")


def test_component_refusals_name_the_file(tmp_path: Path) -> None:
    """What a component refuses is told with the file."""
    assert refusal(tmp_path / "e", "[probe]\nattach = 'magic'").startswith("FILE: probe.attach: invalid enum")
    assert refusal(tmp_path / "e", "[probe]\ninterval_seconds = 0").startswith("FILE: interval_seconds = 0")
    assert "'x' is not a selector condition" in refusal(tmp_path / "e", "[[rule]]\nmatch = 'x'")


WATCH = "[[watch]]\nname = 'w'\nmatch = 'name=x'\ncondition = "


def test_wrong_watches_are_refused(tmp_path: Path) -> None:
    """By field and by what they say, before anything starts."""
    assert "there is no setting 'watch[0].treshold'; did you mean 'threshold'?" in refusal(
        tmp_path / "e", f"{WATCH}'silence'\ntreshold = 1"
    )
    assert "watch 'w': rate_above with threshold 0.0" in refusal(tmp_path / "e", f"{WATCH}'rate_above'")
    assert "port_scan_ports of [detect] is out of range" in refusal(
        tmp_path / "e", "[detect]\nport_scan_ports = 0"
    )


def test_watches_survive_the_way_to_the_roles(tmp_path: Path) -> None:
    """What `up` writes for the server is what it was told."""
    told = f"{WATCH}'rate_above'\nthreshold = 2\n[alerts]\nwebhook_header_file = '/x'\n"
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(told)
    settings = load(Settings, first)
    second.write_text(text(settings))
    assert load(Settings, second) == settings
    assert (settings.watch[0].threshold, settings.alerts.webhook_header_file) == (2.0, Path("/x"))


def test_unreadable_files(tmp_path: Path) -> None:
    """No file, a directory, no TOML, no text: each with its reason."""
    assert refusal(tmp_path / "e", "[probe").startswith("FILE is not TOML: ")
    assert refusal(tmp_path / "e", b"\xff\xfe") == "FILE is not UTF-8 text; save it as UTF-8"
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file or directory")):
        with pytest.raises(ConfigError, match=f"cannot read {path}: {reason}; correct --config"):
            load(Settings, path)


@pytest.mark.parametrize("verb", ["up", "server", "probe"])
def test_every_role_refuses_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """Nothing is started with a file that cannot be used."""
    (tmp_path / "e.toml").write_text("[probe]\nhots = 'x'")
    arguments = [verb, "--config", str(tmp_path / "e.toml"), "--state-dir", str(tmp_path / "state")]
    assert cli.main(arguments) == 1
    assert "there is no setting 'probe.hots'; did you mean 'host'?" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_environment_stands_for_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EASTWEST_CONFIG names the file unless --config does."""
    monkeypatch.setenv("EASTWEST_CONFIG", str(tmp_path / "from-environment"))
    assert cli.main(["server"]) == 1
    assert f"{tmp_path}/from-environment" in capsys.readouterr().err
    assert cli.main(["server", "--config", str(tmp_path / "from-flag")]) == 1
    assert f"{tmp_path}/from-flag" in capsys.readouterr().err
