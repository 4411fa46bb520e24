"""The JSON schema of a tool's arguments, compiled, and what is wrong with a value by it.

Schemas are the client's. jsonschema-rs follows no reference to the network, and matches regular expressions in linear
time or within a bound, so none of them can hold the server up.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import cast

import jsonschema_rs
from pydantic_core import to_json

from chogori.chat.messages import JSON
from chogori.errors import MessageError

MAX_PROBLEMS = 100
"""As many are looked at in one value."""
MAX_MESSAGE_CHARS = 300
BACKTRACK_LIMIT = 100_000
"""Steps of a regular expression that looks around or back, before a text counts as no match; others are linear."""
REGEX_BYTES = 1_000_000
"""Largest compiled regular expression: `(a{1000}){1000}` is written in a few characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong with a value."""

    message: str
    path: tuple[str | int, ...]
    """Where in the value."""
    options: tuple[JSON, ...] = ()
    """What it may be, of an `enum`."""


class ArgumentSchema:
    """A compiled schema (JSON schema 2020-12; formats are annotations, as there)."""

    def __init__(self, text: bytes) -> None:
        self._validator = jsonschema_rs.Draft202012Validator(
            json.loads(text),
            offline=True,
            pattern_options=jsonschema_rs.FancyRegexOptions(
                backtrack_limit=BACKTRACK_LIMIT, size_limit=REGEX_BYTES, dfa_size_limit=REGEX_BYTES
            ),
        )

    @classmethod
    def of(cls, parameters: Mapping[str, JSON]) -> ArgumentSchema:
        """Compile a schema, or take it from those compiled lately. Raises MessageError for what is none."""
        try:
            return _compiled(to_json(parameters, inf_nan_mode="constants", fallback=_as_dict))
        except (ValueError, RecursionError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            message = str(error).partition("\n")[0][:MAX_MESSAGE_CHARS]
            raise MessageError(f"the parameters are no JSON schema that can be followed: {message}") from error

    def problems(self, value: JSON) -> list[Problem]:
        """What is wrong with a value; at most MAX_PROBLEMS. Raises ValueError for one that is no JSON."""
        return list(islice(self._problems(value), MAX_PROBLEMS))

    def _problems(self, value: JSON) -> Iterator[Problem]:
        for error in self._validator.iter_errors(value):
            kind = error.kind
            options = kind.options if isinstance(kind, jsonschema_rs.ValidationErrorKind.Enum) else ()
            yield Problem(
                message=error.message[:MAX_MESSAGE_CHARS],
                path=tuple(error.instance_path),
                options=tuple(cast(list[JSON], options)),
            )


@functools.lru_cache(maxsize=512)
def _compiled(text: bytes) -> ArgumentSchema:
    return ArgumentSchema(text)


def _as_dict(value: object) -> object:
    """Mappings other than dict."""
    if isinstance(value, Mapping):
        return dict(cast(Mapping[str, JSON], value))
    raise ValueError(f"{type(value).__name__} has no JSON form")
