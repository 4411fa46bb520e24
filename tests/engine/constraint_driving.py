"""Writing an answer under a constraint with random tokens, as a model that knows nothing would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jsonschema
import numpy as np

from chogori.chat.messages import ToolSpec
from chogori.chat.tool_call_events import CallArguments, CallBegin, CallEnd, IncompleteCall, Text
from chogori.chat.tool_call_parser import TokenParser
from chogori.engine.constraints import Constraint
from chogori.engine.vocabulary import Vocabulary


@dataclass(frozen=True)
class Written:
    """An answer: its tokens, the end token included where one came."""

    tokens: list[int]
    begun: bool
    ended: bool
    """Whether the message was ended, rather than its tokens used up."""


def write(
    constraint: Constraint,
    vocabulary: Vocabulary,
    *,
    max_tokens: int,
    rng: np.random.Generator,
    wishes: Mapping[int, float] | None = None,
) -> Written:
    """Draw uniformly among the allowed tokens; `wishes` weighs some of them otherwise than 1."""
    weights = np.ones(vocabulary.num_rows)
    for token, weight in (wishes or {}).items():
        weights[token] = weight
    if not constraint.begin(max_tokens):
        return Written([], begun=False, ended=False)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        room = max_tokens - len(tokens)
        mask = constraint.allowed(room)
        assert mask.any(), "nothing is allowed"
        chances = weights * mask
        chances = chances if chances.any() else mask.astype(float)
        drawn = int(rng.choice(vocabulary.num_rows, p=chances / chances.sum()))
        token = constraint.accept(drawn, room)
        # Where text is forced a mask has its longest token only; an ending may spell the same bytes by shorter ones.
        assert mask[token] or token < len(vocabulary.tokenizer.ranks), "a marker that is not allowed"
        tokens.append(token)
        if token in vocabulary.end_ids:
            return Written(tokens, begun=True, ended=True)
    return Written(tokens, begun=True, ended=False)


def read_calls(tokens: Sequence[int], vocabulary: Vocabulary) -> tuple[str, list[tuple[str, str, str]]]:
    """Content and calls (id, name, arguments) of an answer, by the parser that serves clients. No call is cut."""
    parser = TokenParser(vocabulary.tokenizer)
    content, calls = "", list[tuple[str, str, str]]()
    ended = 0
    for event in [*parser.feed(list(tokens)), *parser.finish()]:
        match event:
            case Text(text=text):
                content += text
            case CallBegin(id=call_id, name=name):
                calls.append((call_id, name, ""))
            case CallArguments(text=text):
                calls[-1] = (*calls[-1][:2], calls[-1][2] + text)
            case CallEnd():
                ended += 1
            case IncompleteCall():
                raise AssertionError(f"a call was cut: {event}")
    assert ended == len(calls)
    return content, calls


def check_json(text: str, schema: Mapping[str, object]) -> None:
    """Valid, by an implementation of its own. Formats are annotations (JSON schema 2020-12)."""
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def check_calls(
    written: Written, tools: Sequence[ToolSpec], vocabulary: Vocabulary, *, first_index: int
) -> list[tuple[str, str, str]]:
    """Every call is whole, declared, valid and numbered."""
    _, calls = read_calls([token for token in written.tokens if token not in vocabulary.end_ids], vocabulary)
    schemas = {tool.name: tool.parameters for tool in tools}
    for number, (call_id, name, arguments) in enumerate(calls):
        assert call_id == f"functions.{name}:{first_index + number}"
        check_json(arguments, schemas[name])
    assert written.tokens.count(vocabulary.section_begin) == written.tokens.count(vocabulary.section_end)
    return calls
