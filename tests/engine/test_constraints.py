"""Whatever writes under a constraint, calls are whole and valid: driven with random tokens over random schemas."""

import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool, Sampling
from chogori.chat.messages import Message, ToolSpec
from chogori.engine.constraints import Constraint, Constraints, ToolCalls
from chogori.engine.vocabulary import Vocabulary
from chogori.errors import RequestError
from tests.engine.constraint_driving import Written, check_calls, check_json, read_calls, write
from tests.engine.random_schemas import random_tool_schema

USER = (Message(role="user", content="go"),)
SHORT = {"type": "object", "properties": {}, "additionalProperties": False}


def constraint_of(vocabulary: Vocabulary, *, first_index: int = 0, **fields: Any) -> Constraint:
    return Constraints(vocabulary).of_chat(ChatRequest(messages=USER, **fields), first_index=first_index)


def random_tools(seed: int) -> list[ToolSpec]:
    random_ = random.Random(seed)
    names = random_.sample(
        ["get_weather", "a", "a.b", "a-b", "search:0", "$web_search", "ab", "天気"], random_.randint(1, 4)
    )
    return [ToolSpec(name=name, parameters=random_tool_schema(random_)) for name in names]


def json_wishes(vocabulary: Vocabulary, seed: int) -> dict[int, float]:
    """Weights that make nesting, escapes, commas or ends likelier or rarer, other ones for each seed."""
    rng = np.random.default_rng(seed)
    wishes = {vocabulary.byte_ids[value]: float(rng.choice([0.1, 1, 50, 500])) for value in b'{}[]",:\\-0e.tn'}
    wishes[vocabulary.section_begin] = 200.0
    wishes[vocabulary.section_end] = float(rng.choice([0.01, 1, 50]))
    wishes[vocabulary.call_end] = float(rng.choice([0.01, 1, 50]))
    for token in vocabulary.end_ids:
        wishes[token] = float(rng.choice([0, 1]))
    return wishes


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000), max_tokens=st.integers(1, 200), first_index=st.sampled_from([0, 1, 99]), data=st.data()
)
def test_calls_are_valid_at_every_token_limit(
    vocabulary: Vocabulary, seed: int, max_tokens: int, first_index: int, data: st.DataObject
) -> None:
    tools = random_tools(seed)
    choice = data.draw(st.sampled_from(["auto", "required", NamedTool(name=tools[0].name)]))
    parallel = data.draw(st.booleans())
    constraint = constraint_of(
        vocabulary, first_index=first_index, tools=tools, tool_choice=choice, parallel_tool_calls=parallel
    )
    rng = np.random.default_rng(seed)
    written = write(constraint, vocabulary, max_tokens=max_tokens, rng=rng, wishes=json_wishes(vocabulary, seed))
    calls = check_calls(written, tools, vocabulary, first_index=first_index)
    assert isinstance(constraint, ToolCalls)
    assert not constraint.has_open_call
    if written.begun and choice != "auto":
        assert calls
        assert written.tokens[0] == vocabulary.section_begin
    if isinstance(choice, NamedTool):
        assert {name for _, name, _ in calls} <= {choice.name}
    if not parallel or isinstance(choice, NamedTool):
        assert len(calls) <= 1


@pytest.mark.parametrize("max_tokens", range(1, 90))
def test_a_required_call_fits_or_does_not_begin(vocabulary: Vocabulary, max_tokens: int) -> None:
    """The smallest call is known here: its markers, at most its id's bytes, and {}, which is one token."""
    tools = [ToolSpec(name="f", parameters=SHORT), ToolSpec(name="long_name" * 5, parameters=SHORT)]
    written = write(
        constraint_of(vocabulary, tools=tools, tool_choice="required"),
        vocabulary,
        max_tokens=max_tokens,
        rng=np.random.default_rng(max_tokens),
        wishes={vocabulary.section_end: 0.0, vocabulary.im_end: 0.0},
    )
    smallest = 3 + len(b"functions.f:0") + 1 + 2
    assert written.begun == (max_tokens >= smallest)
    calls = check_calls(written, tools, vocabulary, first_index=0)
    assert bool(calls) == written.begun


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), max_tokens=st.integers(1, 200))
def test_json_is_valid_or_does_not_begin(vocabulary: Vocabulary, seed: int, max_tokens: int) -> None:
    schema = random_tool_schema(random.Random(seed))
    constraint = constraint_of(vocabulary, response_format=JsonFormat(schema=schema))
    rng = np.random.default_rng(seed)
    written = write(constraint, vocabulary, max_tokens=max_tokens, rng=rng, wishes=json_wishes(vocabulary, seed))
    content, _ = read_calls([token for token in written.tokens if token not in vocabulary.end_ids], vocabulary)
    if written.begun:
        check_json(content, schema)
    else:
        assert content == ""


SCALARS: list[dict[str, Any]] = [
    {"type": "number"},
    {"type": "integer", "multipleOf": 7},
    {"type": "string", "pattern": "^a*b$"},
    {"anyOf": [{"type": "number"}, {"type": "array"}]},
    {"enum": [1, 12, 123, "x", None]},
    {"type": "boolean"},
    {},
]


@pytest.mark.parametrize("schema", SCALARS)
def test_json_that_is_no_object_is_valid_at_every_limit(vocabulary: Vocabulary, schema: dict[str, Any]) -> None:
    """A number may end anywhere, and go on: at the limit `1` must not become `1e`."""
    digits = {vocabulary.byte_ids[value]: 300.0 for value in b"0123456789e.-+[{"}
    for max_tokens in range(1, 30):
        for seed in range(4):
            written = write(
                constraint_of(vocabulary, response_format=JsonFormat(schema=schema)),
                vocabulary,
                max_tokens=max_tokens,
                rng=np.random.default_rng(seed),
                wishes=digits if seed % 2 else None,
            )
            if written.begun:
                content, _ = read_calls([t for t in written.tokens if t not in vocabulary.end_ids], vocabulary)
                check_json(content, schema)


DEBTS: dict[str, tuple[dict[str, Any], bytes]] = {
    "lists in lists": ({"type": "object", "properties": {"x": {"type": "array"}}, "required": ["x"]}, b"["),
    "many items after free text": (
        {
            "type": "object",
            "properties": {"x": {"type": "string"}, "y": {"type": "array", "items": {"type": "null"}, "minItems": 200}},
            "required": ["x", "y"],
        },
        b"a",
    ),
    "each level owes a text": (
        {
            "type": "object",
            "properties": {"x": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "y": {"type": "string", "minLength": 40}},
            "required": ["x", "y"],
            "additionalProperties": False,
        },
        b"[{",
    ),
}


@pytest.mark.parametrize("name", DEBTS)
def test_an_ending_fits_however_much_was_opened_while_there_was_room(vocabulary: Vocabulary, name: str) -> None:
    """A model that opens whatever it can, or dwells on free text, and ends nothing by itself."""
    schema, liked = DEBTS[name]
    bytes_of = vocabulary.tokenizer.decode_bytes
    closing = [i for i in range(len(vocabulary.tokenizer.ranks)) if set(bytes_of([i])) & set(b"}]")]
    wishes = {**dict.fromkeys([*closing, vocabulary.call_end], 1e-9), vocabulary.section_end: 1e9}
    wishes |= {vocabulary.byte_ids[value]: 1e6 for value in liked}
    tools = [ToolSpec(name="f", parameters=schema)]
    constraint = constraint_of(vocabulary, tools=tools, tool_choice="required")
    written = write(constraint, vocabulary, max_tokens=1500, rng=np.random.default_rng(0), wishes=wishes)
    assert len(check_calls(written, tools, vocabulary, first_index=0)) == 1


HOLES: dict[str, tuple[dict[str, Any], str]] = {
    "a declared key once more, escaped": (
        {"type": "object", "properties": {"a": {"type": "integer"}}},
        '{"a":1,"\\u0061":"x"}',
    ),
    "the same beside typed further keys": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
        '{"a":1,"\\u0061":"x"}',
    ),
    "the same beside patterns": (
        {"type": "object", "patternProperties": {"^x": {"type": "integer"}}},
        '{"\\u0078y":"s"}',
    ),
    "the same within an array of a definition": (
        {
            "type": "object",
            "properties": {"r": {"$ref": "#/$defs/rows"}},
            "$defs": {"rows": {"type": "array", "items": {"type": "object", "properties": {'"': {"type": "null"}}}}},
        },
        '{"r":[{"\\u0022":1}]}',
    ),
}


@pytest.mark.parametrize("name", HOLES)
def test_no_escape_spells_a_declared_key_twice(vocabulary: Vocabulary, name: str) -> None:
    """JSON readers take the last of two equal keys, so the second may not be of another type."""
    schema, text = HOLES[name]
    with pytest.raises(jsonschema.ValidationError):
        check_json(text, schema)
    matcher = vocabulary.matcher_of_schema(schema, field="tools")
    ids = [vocabulary.byte_ids[value] for value in text.encode()]
    assert matcher.validate_tokens(ids) < len(ids)


@pytest.mark.parametrize(
    ("keyword", "told"),
    [
        ({"not": {"type": "null"}}, "not"),
        ({"if": {"not": {}}, "then": {}}, "not"),
        ({"uniqueItems": True, "minItems": 2}, "uniqueItems"),
        ({"contains": {}}, "contains"),
        ({"propertyNames": {"minLength": 3}}, "propertyNames"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "strong"}, "strong"),
        ({"pattern": "(?=a)b"}, "regex"),
        ({"minimum": 3, "exclusiveMinimum": True}, "exclusiveMinimum is True; expected a number"),
        ({"type": "object", "minProperties": 2}, "minProperties is 2; expected at most one more"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"type": "string", "minLength": 5000}, "no arguments of at most 4096 tokens satisfy it"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(vocabulary: Vocabulary, keyword: dict[str, Any], told: str) -> None:
    schema = {"type": "object", "properties": {"a": keyword}, "required": ["a"]}
    # A client's own settings for the grammar library must not switch keywords off.
    for extra in ({}, {"x-guidance": {"lenient": True, "coerce_one_of": True}}):
        tools = [ToolSpec(name="f", parameters=SHORT), ToolSpec(name="g", parameters={**schema, **extra})]
        with pytest.raises(RequestError, match=told) as caught:
            constraint_of(vocabulary, tools=tools)
        assert caught.value.field == "tools[1].function.parameters"
        assert str(caught.value).startswith("tools[1].function.parameters cannot be enforced: ")


def test_an_answer_whose_schema_cannot_be_enforced_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(RequestError, match="Unimplemented keys") as caught:
        constraint_of(vocabulary, response_format=JsonFormat(schema={"not": {}}))
    assert caught.value.field == "response_format.json_schema"


@pytest.mark.parametrize("kind", ["string", "array", ["object", "null"]])
def test_arguments_that_are_no_object_are_refused(vocabulary: Vocabulary, kind: Any) -> None:
    with pytest.raises(RequestError, match=r"parameters\.type is .*; expected 'object'"):
        constraint_of(vocabulary, tools=[ToolSpec(name="f", parameters={"type": kind})])


def test_tools_that_may_not_be_called_are_not(vocabulary: Vocabulary) -> None:
    constraint = constraint_of(vocabulary, tools=[ToolSpec(name="f", parameters=SHORT)], tool_choice="none")
    written = write(constraint, vocabulary, max_tokens=300, rng=np.random.default_rng(0), wishes={vocabulary.im_end: 0})
    assert all(token < len(vocabulary.tokenizer.ranks) or token in vocabulary.end_ids for token in written.tokens)
    assert not constraint.allowed(300)[vocabulary.section_begin]


def test_calls_may_come_instead_of_json_and_after_it_and_never_within(vocabulary: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {"k": {"type": "boolean"}},
        "required": ["k"],
        "additionalProperties": False,
    }
    tools = [ToolSpec(name="f", parameters=SHORT)]
    seen: set[tuple[bool, bool]] = set()
    for seed in range(60):
        written = write(
            constraint_of(vocabulary, tools=tools, response_format=JsonFormat(schema=schema)),
            vocabulary,
            max_tokens=60,
            rng=np.random.default_rng(seed),
            wishes={vocabulary.section_begin: 2.0 if seed % 2 else 0.5},
        )
        calls = check_calls(written, tools, vocabulary, first_index=0)
        content, _ = read_calls([token for token in written.tokens if token not in vocabulary.end_ids], vocabulary)
        if content:
            check_json(content, schema)
        seen.add((bool(content), bool(calls)))
    assert seen == {(True, False), (False, True), (True, True)}


def test_an_answer_that_ignores_its_end_goes_on(vocabulary: Vocabulary) -> None:
    constraint = constraint_of(vocabulary, sampling=Sampling(ignore_eos=True))
    written = write(
        constraint, vocabulary, max_tokens=50, rng=np.random.default_rng(0), wishes={vocabulary.im_end: 1e9}
    )
    assert isinstance(written, Written)
    assert len(written.tokens) == 50
    assert not written.ended


LOST: dict[str, tuple[dict[str, Any], bytes]] = {
    "brackets": ({"type": "object"}, b"["),
    "objects": ({"type": "object", "properties": {"a": {"$ref": "#"}}}, b'{"'),
    "digits": ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, b"1"),
    "zeros behind a point": (
        {"type": "object", "properties": {"a": {"type": "number", "exclusiveMinimum": 0}}, "required": ["a"]},
        b"0",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_a_model_that_is_lost_writes_what_readers_take(vocabulary: Vocabulary, name: str) -> None:
    """Python's json raises RecursionError from about 990 levels on, ValueError from 4,301 digits on."""
    schema, favourites = LOST[name]
    tools = [ToolSpec(name="f", parameters=schema)]
    wishes = {vocabulary.byte_ids[value]: 1e12 for value in favourites}
    constraint = constraint_of(vocabulary, tools=tools, tool_choice="required")
    written = write(constraint, vocabulary, max_tokens=5000, rng=np.random.default_rng(0), wishes=wishes)
    ((_, _, arguments),) = check_calls(written, tools, vocabulary, first_index=0)[:1]
    assert len(arguments) < 2000


NAMES = ("a", "ab", "a-b", "a.b", "a:0", "a:0:0", "$a", "functions.a", "/re/", "%", "天気", "é", "😀", "a" * 300)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_told_from_those_that_begin_alike(vocabulary: Vocabulary, name: str) -> None:
    """Each has arguments of its own, so that a call of one name with another's schema would show."""
    tools = [
        ToolSpec(
            name=name + rest,
            parameters={
                "type": "object",
                "properties": {"n": {"const": rest}},
                "required": ["n"],
                "additionalProperties": False,
            },
        )
        for rest in ("", "x", ":0", ":0:0", "-", ".", "x9")
    ]
    seen: set[str] = set()
    for seed in range(2):
        written = write(
            constraint_of(vocabulary, tools=tools, tool_choice="required", first_index=9),
            vocabulary,
            max_tokens=300 + 6 * len(name),
            rng=np.random.default_rng(seed),
            wishes={vocabulary.section_end: 0.05, vocabulary.call_end: 1e6},
        )
        seen |= {name for _, name, _ in check_calls(written, tools, vocabulary, first_index=9)}
    assert len(seen) >= 3


@pytest.mark.parametrize("name", ["a b", "a\nb", 'a"b', "a\\b", "<|im_end|>", "\x7f", "\ud800", "\u2028", "a,b", "f()"])
def test_names_that_could_not_be_read_back_are_refused(vocabulary: Vocabulary, name: str) -> None:
    tools = [ToolSpec(name="f", parameters=SHORT), ToolSpec(name=name, parameters=SHORT)]
    for choice in ("auto", "required", NamedTool(name=name)):
        with pytest.raises(RequestError, match=r"tools\[1\]\.function\.name is .*; expected no white space") as caught:
            constraint_of(vocabulary, tools=tools, tool_choice=choice)
        assert caught.value.field == "tools[1].function.name"
