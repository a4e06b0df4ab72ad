"""Whatever a settings file holds, it is accepted or refused in one line; nothing else comes out."""

import math
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eastwest.cli import toml
from eastwest.cli.config import ProbeSettings, load, text
from eastwest.cli.settings import Settings
from eastwest.errors import ConfigError


def accepted(path: Path, content: bytes, kind: type[msgspec.Struct] = Settings) -> bool:
    """Whether the file is; if not, ConfigError says so in one printable line with the file's name."""
    path.write_bytes(content)
    try:
        found = load(kind, path)
    except ConfigError as error:
        line = str(error)
        assert line.isprintable() and str(path) in line and len(line) < 1000, line
        return False
    again = path.with_suffix(".again")
    again.write_text(text(found))
    assert load(kind, again) == found or _has_nan(msgspec.to_builtins(found, enc_hook=str))
    return True


def _has_nan(document: Any) -> bool:
    if isinstance(document, dict):
        return any(map(_has_nan, document.values()))
    return isinstance(document, float) and math.isnan(document)


def _sections() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for field in msgspec.structs.fields(Settings):
        kind = field.type
        found[field.encode_name] = (
            [f.encode_name for f in msgspec.structs.fields(kind)]
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
            else []
        )
    return found


SECTIONS = _sections()
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([2**63, 2**64, 10**400])
)
TEXTS = st.one_of(
    st.text(max_size=10),
    st.sampled_from(["", "x", "127.0.0.1:0", "udp://h", "name=a", "\x00", "\x1b[31m", "a" * 3000, "\u2028"]),
)
VALUES = st.recursive(
    st.one_of(st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def _almost(draw: st.DrawFn) -> dict[str, Any]:
    """Known sections with known and unknown keys, and any values."""
    document: dict[str, Any] = {}
    for section in draw(st.lists(st.sampled_from([*SECTIONS, "x"]), max_size=3, unique=True)):
        keys = st.sampled_from(SECTIONS.get(section) or ["match", "x"]) | TEXTS
        table = st.dictionaries(keys, VALUES, max_size=3)
        document[section] = draw(st.one_of(table, table, table, st.lists(table, max_size=2), VALUES))
    return document


FEW = settings(
    max_examples=int(os.environ.get("EASTWEST_FUZZ_EXAMPLES", "150")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FEW
@given(_almost(), st.sampled_from([Settings, ProbeSettings]))
def test_almost_valid_documents(tmp_path: Path, document: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    """Right sections with wrong keys, types and sizes."""
    try:
        content = toml.dump(document).encode()
    except (UnicodeEncodeError, ValueError):
        return
    accepted(tmp_path / "e.toml", content, kind)


@FEW
@given(st.binary(max_size=200) | st.text("[]={}\"'\n.,#abc019_-+:T \\\x00é", max_size=60).map(str.encode))
@example(b"\xff")
@example(b"a = 1979-05-27T07:32:00Z")
@example(b"[store]\npath = 1979-05-27")
@example(b"[probe]\naccounts = inf\ninterval_seconds = nan")
@example(b"[probe]\ninterval_seconds = 1e400")
@example(b"a." * 5000 + b"b = 1")
def test_garbage(tmp_path: Path, content: bytes) -> None:
    """Bytes that are hardly TOML."""
    accepted(tmp_path / "e.toml", content)


@pytest.mark.parametrize("depth", [50, 500, 5_000, 20_000])
@pytest.mark.parametrize(
    ("before", "inner", "after"),
    [(b"a = ", b"[", b"]"), (b"probe = ", b"{a=", b"}"), (b"[", b"a.", b"b]"), (b"", b"[", b"]")],
)  # fmt: skip
def test_deep_nesting(tmp_path: Path, depth: int, before: bytes, inner: bytes, after: bytes) -> None:
    """Lists in lists and tables in tables, far deeper than Python recurses."""
    closing = after * depth if len(after) == 1 else after
    assert not accepted(tmp_path / "e.toml", before + inner * depth + closing)


@pytest.mark.parametrize(
    "number", ["9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "1e9999", "1" + "_0" * 3000]
)
def test_huge_numbers(tmp_path: Path, number: str) -> None:
    """Longer than Python turns into an integer."""
    assert not accepted(tmp_path / "e.toml", f"[probe]\naccounts = {number}\n".encode())
