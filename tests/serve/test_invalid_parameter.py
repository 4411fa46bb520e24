"""Complaints of pydantic in the words of OpenAI's API, as its users have seen them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chogori.serve.invalid_parameter import invalid_parameter


class Inner(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    role: Literal["system", "user", "tool"] = "user"
    name: Annotated[str, Field(min_length=1, max_length=3)] = "n"


class Outer(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    model: str
    n: Annotated[int, Field(ge=1, le=128)] = 1
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    messages: Annotated[list[Inner], Field(min_length=1, max_length=2)] = [Inner()]
    stop: str | list[str] | None = None


def found(body: object) -> tuple[str, str | None, str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(body)
    errors: list[Any] = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    said = invalid_parameter(RequestValidationError(errors))
    return said.message, said.field, said.code


@pytest.mark.parametrize(
    ("changes", "message", "field", "code"),
    [
        ({"model": ...}, "Missing required parameter: 'model'.", "model", "missing_required_parameter"),
        (
            {"n": 130},
            "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 130 instead.",
            "n",
            "integer_above_max_value",
        ),
        (
            {"top_p": 0},
            "Invalid 'top_p': decimal below minimum value. Expected a value > 0, but got 0 instead.",
            "top_p",
            "decimal_below_min_value",
        ),
        (
            {"n": 10**5_000},
            "Invalid 'n': integer above maximum value. Expected a value <= 128, but got a number of very many digits "
            "instead.",
            "n",
            "integer_above_max_value",
        ),
        ({"n": None}, "Invalid type for 'n': expected an integer, but got null instead.", "n", "invalid_type"),
        ({"n": 1.5}, "Invalid type for 'n': expected an integer, but got a decimal instead.", "n", "invalid_type"),
        (
            {"stop": {}},
            "Invalid type for 'stop': expected one of a string or an array, but got an object instead.",
            "stop",
            "invalid_type",
        ),
        (
            {"stop": [1]},
            "Invalid type for 'stop[0]': expected a string, but got an integer instead.",
            "stop[0]",
            "invalid_type",
        ),
        (
            {"messages": []},
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "messages",
            "empty_array",
        ),
        (
            {"messages": [{}] * 3},
            "Invalid 'messages': array too long. Expected an array with maximum length 2, "
            "but got an array with length 3 instead.",
            "messages",
            "array_above_max_length",
        ),
        (
            {"messages": [{"name": "long"}]},
            "Invalid 'messages[0].name': string too long. Expected a string with maximum length 3, "
            "but got a string with length 4 instead.",
            "messages[0].name",
            "string_above_max_length",
        ),
        (
            {"messages": [{"role": "bot"}]},
            "Invalid value: 'bot'. Supported values are: 'system', 'user' and 'tool'.",
            "messages[0].role",
            "invalid_value",
        ),
        (
            {"messages": [{"mood": 1}]},
            "Unknown parameter: 'messages[0].mood'.",
            "messages[0].mood",
            "unknown_parameter",
        ),
    ],
)
def test_words(changes: dict[str, Any], message: str, field: str, code: str) -> None:
    body = {name: value for name, value in {"model": "m", **changes}.items() if value is not ...}
    assert found(body) == (message, field, code)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["model", "n", "top_p", "messages", "stop", "role", "name"]), inner)
        ),
        max_leaves=8,
    )
)
def test_every_complaint_has_words_that_are_not_pydantics(body: object) -> None:
    """None is longer than a screen either, whatever was sent."""
    try:
        Outer.model_validate(body)
    except ValidationError:
        message, _, code = found(body)
        assert "Input should" not in message
        assert len(message) < 400
        assert code.replace("_", "").isalpha()
