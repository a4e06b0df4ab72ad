"""Writes TOML, which the standard library only reads: the small files that `up` gives to its roles."""

import json
from collections.abc import Mapping
from typing import Any


def dump(document: Mapping[str, Any]) -> str:
    """Sections as tables, lists of tables as arrays of tables; None is left out."""
    lines = [f"{key} = {_value(value)}" for key, value in document.items() if _is_plain(value)]
    for key, value in document.items():
        if _is_plain(value) or value is None:
            continue
        for table in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{key}]]" if isinstance(value, list) else f"[{key}]"]
            lines += [f"{k} = {_value(v)}" for k, v in table.items() if v is not None]
    return "\n".join(lines).lstrip("\n") + "\n"


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return not (value and all(isinstance(item, Mapping) for item in value))
    return value is not None and not isinstance(value, Mapping)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        said = {k: v for k, v in value.items() if v is not None}
        return "{" + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in said.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
