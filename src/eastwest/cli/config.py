"""Configuration: flags over environment over TOML file over defaults, checked before anything starts.

Sections of the file are the components' own config structs. What is checked is a struct of sections: all of
them (`cli.settings.Settings`), or the probe's alone, which must not need the server's packages.
"""

import re
import tomllib
import types
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from eastwest.bus.client import BusConfig
from eastwest.cli import toml
from eastwest.errors import ConfigError
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.model import readable
from eastwest.labels.rules import Rule
from eastwest.probe.config import ProbeConfig, SuspectConfig
from eastwest.tap.config import TapConfig

DEFAULT_STATE_DIR = Path("/var/lib/eastwest")

Document = dict[str, Any]
Sections = TypeVar("Sections", bound=msgspec.Struct)

_LONGEST = 400
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.+)`")
_WHERE = re.compile(r" - at `\$\.?(?P<path>.*)`$")


class ProbeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the probe needs; the sections of other roles may be there and are theirs to check."""

    probe: ProbeConfig = msgspec.field(default_factory=ProbeConfig)
    inventory: InventoryConfig = msgspec.field(default_factory=InventoryConfig)
    bus: BusConfig = msgspec.field(default_factory=BusConfig)
    rule: list[Rule] = msgspec.field(default_factory=list)
    suspect: SuspectConfig = msgspec.field(default_factory=SuspectConfig)
    tap: TapConfig = msgspec.field(default_factory=TapConfig)
    server: Document = msgspec.field(default_factory=dict)
    collector: Document = msgspec.field(default_factory=dict)
    store: Document = msgspec.field(default_factory=dict)
    export: Document = msgspec.field(default_factory=dict)
    watch: list[Document] = msgspec.field(default_factory=list)
    alerts: Document = msgspec.field(default_factory=dict)
    detect: Document = msgspec.field(default_factory=dict)
    streams: Document = msgspec.field(default_factory=dict)


def load(
    kind: type[Sections], path: Path | None, state_dir: Path | None = None, listen: str | None = None
) -> Sections:
    """The file with what flags and environment say over it, checked. Raises ConfigError."""
    document = _read(path)
    _over(document, "probe", state_dir=state_dir.absolute() if state_dir else None)
    _over(document, "server", listen=listen)
    if not {"path", "url"} & set(_section(document, "store")):
        state = _section(document, "probe").get("state_dir", DEFAULT_STATE_DIR)
        _over(document, "store", path=Path(str(state)) / "store")
    _place_streams(document)
    return _checked(kind, document, path)


def _place_streams(document: Document) -> None:
    """Streams of packets: beside the rest of the state, and at the port behind the API's."""
    streams = _section(document, "streams")
    if "path" not in streams:
        state = _section(document, "probe").get("state_dir", DEFAULT_STATE_DIR)
        _over(document, "streams", path=Path(str(state)) / "captures")
    host, _, port = str(_section(document, "server").get("listen", "")).rpartition(":")
    if "listen" not in streams and host and re.fullmatch("[0-9]{1,5}", port) and int(port) < 65535:
        # Every address is none that probes could be told.
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        _over(document, "streams", listen=f"{host}:{int(port) + 1 if int(port) else 0}")


def text(settings: msgspec.Struct) -> str:
    """Settings as the TOML file that says the same."""
    return toml.dump(msgspec.to_builtins(settings, enc_hook=str))


def _read(path: Path | None) -> Document:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "correct --config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {_shown(str(error))}", "correct that line") from None
    except RecursionError:
        raise ConfigError(f"{path} nests lists or tables too deeply", "no setting needs that") from None
    except ValueError as error:
        # An integer of more digits than Python reads, or a date that never was.
        raise ConfigError(f"{path}: {_shown(str(error))}", "correct that value") from None


def _over(document: Document, section: str, **settings: object) -> None:
    """Set what a flag or the environment says over what the file says; None says nothing."""
    said = {key: str(v) if isinstance(v, Path) else v for key, v in settings.items() if v is not None}
    if said and isinstance(document.setdefault(section, {}), dict):
        document[section] |= said


def _section(document: Document, name: str) -> Document:
    table = document.get(name, {})
    # What is no table is refused by name when all of it is checked.
    return table if isinstance(table, dict) else {}


def _checked(kind: type[Sections], document: Document, source: Path | None) -> Sections:
    try:
        return msgspec.convert(document, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        what, remedy = _explain(kind, str(error))
    except ConfigError as error:
        what, remedy = error.what, error.remedy
    raise ConfigError(f"{source or 'settings'}: {_shown(what)}", _shown(remedy))


def _shown(text: str) -> str:
    """What a file made somebody say: in one line, and not longer than one reads."""
    line = readable(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("Expected a path")


def _explain(kind: type[msgspec.Struct], message: str) -> tuple[str, str]:
    """What is wrong, by key, and what to do about it."""
    where = _WHERE.search(message)
    path = where["path"] if where else ""
    what = _WHERE.sub("", message)
    unknown = _UNKNOWN.match(what)
    if unknown is None:
        plain = f"{what[0].lower()}{what[1:]}".replace("`", "'").replace("'object'", "a section")
        return f"{path}: {plain}", f"correct {path}"
    name = unknown["key"]
    known = _keys(kind, path)
    near = get_close_matches(name, known, 1, cutoff=0.5)
    key = f"{path}.{name}" if path else name
    remedy = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
    return f"there is no setting '{key}'", remedy


def _keys(kind: type[msgspec.Struct], path: str) -> list[str]:
    """Keys that the section at `path` (probe, rule[0], export.prometheus) knows; without it, all of them."""
    for section in re.sub(r"\[[^]]*\]", "", path).split(".") if path else ():
        found = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}[section]
        kind = get_args(found)[0] if get_origin(found) is list else found
        if isinstance(kind, types.GenericAlias):
            return []
    return [field.encode_name for field in msgspec.structs.fields(kind)]
