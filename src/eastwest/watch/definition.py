"""What a watch may say: checked wherever one comes from, the TOML file, the API or the bus."""

import math
import re

from eastwest.bus.messages import Silence, Watch
from eastwest.errors import ConfigError, EastwestError
from eastwest.labels.selector import Selector

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
"""What the bus takes as a key, and people can write without quotes."""

_HOUR, _DAY = 3600, 86400
_LONGEST = {"silence": 30 * _DAY}
_MAX_TEXT = 1000


class Definition(Watch, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A watch that has been checked; one that makes no sense raises ConfigError."""

    def __post_init__(self) -> None:
        try:
            _check(self)
        except EastwestError as error:
            raise ConfigError(f"watch '{self.name[:64]}': {error.what}", error.remedy) from None


def _check(watch: Watch) -> None:
    if not NAME.fullmatch(watch.name):
        raise ConfigError("that is not a name", "use up to 64 letters, digits, - and _")
    check_selector(watch.match)
    rate = watch.condition in ("rate_above", "rate_below")
    if not math.isfinite(watch.threshold) or watch.threshold < 0 or (rate and watch.threshold == 0):
        raise ConfigError(f"{watch.condition} with threshold {watch.threshold}", "give units per second > 0")
    if watch.condition == "suspect_share" and not watch.threshold < 1:
        raise ConfigError(f"suspect_share with threshold {watch.threshold}", "give a part of 1, like 0.01")
    for name, least, most in (
        ("window_seconds", 1, _LONGEST.get(watch.condition, _HOUR)),
        ("for_seconds", 0, _DAY),
        ("learn_seconds", 60, 90 * _DAY),
    ):
        if not least <= getattr(watch, name) <= most:
            raise ConfigError(f"{name} is out of range", f"choose {least} to {most}")


def check_selector(text: str) -> None:
    """Raises RefusedError for what is no selector."""
    if len(text) > _MAX_TEXT:
        raise ConfigError("the selector is too long", f"use at most {_MAX_TEXT} characters")
    Selector.parse(text)


def check_silence(silence: Silence) -> None:
    """Raises EastwestError for one that silences nothing it names."""
    if (not silence.alert) == (silence.match is None):
        raise ConfigError("a silence is of one alert or of one selector", "give the id of an alert, or match")
    if silence.match is not None:
        check_selector(silence.match)
