"""Lengths of time as people type them: 45s, 30m, 12h, 7d."""

from __future__ import annotations

import re

from chogori.errors import ConfigError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FORM = re.compile(r"(\d{1,9})([smhdw])")


def seconds_of(text: str, what: str) -> int:
    """The seconds in a length of time. Raises ConfigError, which says `what` it is of."""
    form = _FORM.fullmatch(text.strip())
    if form is None or not int(form[1]):
        raise ConfigError(f"{what} is {text!r}; expected a number and s, m, h, d or w, such as 30d")
    return int(form[1]) * UNITS[form[2]]
