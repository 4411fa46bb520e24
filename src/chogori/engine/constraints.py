"""What an answer may be, token by token: free text, JSON, or text with calls of declared tools.

A constraint says which ids may come next and is told which one came. Calls are followed as K2 writes them: section
begin, then for each call its marker, `functions.NAME:IDX`, the argument marker, JSON by the tool's schema, its end;
after the section's end the message ends. From the marker that opens a section on, everything is enforced, so that a
call is valid whatever the model would rather say. Near the token limit a call may only go on as long as a known ending
still fits; so no call is ever cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import llguidance

from chogori.chat.completer import ChatRequest, JsonFormat, NamedTool
from chogori.chat.messages import JSON, ToolSpec
from chogori.chat.tool_call_events import CallName, name_of
from chogori.engine.closing import Closer, Tails
from chogori.engine.json_place import JsonPlace
from chogori.engine.vocabulary import Mask, Vocabulary
from chogori.errors import RequestError

MAX_CALLS = 128
"""Calls in one answer, at most (Moonshot's limit on declared tools, for want of one on calls)."""
CLOSING_TOKENS = 2
"""A call's end marker and its section's."""
MAX_ENDING_TOKENS = 4096
"""Longest ending that is looked for."""


class Constraint(Protocol):
    """The rules of one answer. `room` is how many tokens may still be produced, the coming one included."""

    def begin(self, room: int) -> bool:
        """Whether any answer that keeps the rules fits into `room` tokens; called once, first."""
        ...

    def allowed(self, room: int) -> Mask:
        """Ids that may come next; at least one."""
        ...

    def accept(self, token: int, room: int) -> int:
        """Take `token`, one of those allowed, or another in its place where an ending would no longer fit after it."""
        ...


class Content(Constraint, Protocol):
    """Rules of what an answer says beside its calls."""

    @property
    def may_pause(self) -> bool:
        """Whether calls may come now."""
        ...


class FreeText:
    """Text that ends when the model ends it. `bars_end` makes it go on."""

    may_pause = True

    def __init__(self, vocabulary: Vocabulary, *, bars_end: bool = False) -> None:
        self._mask = vocabulary.text_mask
        if bars_end:
            self._mask = self._mask.copy()
            self._mask[list(vocabulary.end_ids)] = False

    def begin(self, room: int) -> bool:
        return room >= 1

    def allowed(self, room: int) -> Mask:
        return self._mask

    def accept(self, token: int, room: int) -> int:
        return token


class JsonText:
    """JSON by a grammar, followed so that an ending which fits is known at every token."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        closer: Closer,
        matcher: llguidance.LLMatcher,
        *,
        tails: Tails,
        end: int,
        reserve: int,
    ) -> None:
        """`tails`: see `Closer`. `end`: the token that ends the text. `reserve`: tokens that must remain after it."""
        self._vocabulary, self._closer = vocabulary, closer
        self._matcher, self._tails = matcher, tails
        self._place = JsonPlace()
        self._end, self._reserve = end, reserve
        self._ending: list[int] = []
        self._is_closing = False

    def begin(self, room: int) -> bool:
        """Whether the shortest JSON known fits, its reserve included."""
        ending = self._closer.ending(self._matcher, self._place, self._limit(room), tails=self._tails)
        self._ending = ending or []
        return ending is not None

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return self._matcher.is_accepting()

    def allowed(self) -> Mask:
        mask = self._vocabulary.allowed_by(self._matcher)
        mask[self._end] = self.is_complete
        return mask

    def accept(self, token: int, room: int) -> int:
        """Take `token` or, where no ending would fit behind it, the next one of the ending known, or the end.

        So too where readers would give up: a model that is lost opens brackets, or writes digits, without end. From
        there on the ending known is followed, since a search that fails is the dearest.
        """
        if token == self._end:
            return token
        if not self._is_closing:
            after, place = self._after(token)
            # Looked for at every token: how much one token can open is bounded by nothing, since JSON nests.
            ending = None
            if place.is_readable:
                ending = self._closer.ending(after, place, self._limit(room - 1), known=self._ending, tails=self._tails)
            if ending is not None:
                self._matcher, self._place, self._ending = after, place, ending
                return token
            self._is_closing = True
        if not self._ending:
            return self._end
        token = self._ending.pop(0)
        self._matcher, self._place = self._after(token)
        return token

    def _limit(self, room: int) -> int:
        return min(room - self._reserve, MAX_ENDING_TOKENS)

    def _after(self, token: int) -> tuple[llguidance.LLMatcher, JsonPlace]:
        after, place = self._matcher.deep_copy(), self._place.copy()
        taken = after.consume_token(token)
        assert taken, "a token outside the mask"
        place.feed(self._vocabulary.tokenizer.decode_bytes([token]))
        return after, place


class JsonAnswer:
    """An answer that is JSON, then the end of the message."""

    def __init__(self, vocabulary: Vocabulary, closer: Closer, response_format: JsonFormat) -> None:
        schema = {"type": "object"} if response_format.schema is None else dict(response_format.schema)
        matcher = vocabulary.matcher_of_schema(schema, field="response_format.json_schema")
        self._json = JsonText(vocabulary, closer, matcher, tails=closer.tails(schema), end=vocabulary.im_end, reserve=0)
        self._begun = False

    @property
    def may_pause(self) -> bool:
        return not self._begun or self._json.is_complete

    def begin(self, room: int) -> bool:
        return self._json.begin(room)

    def allowed(self, room: int) -> Mask:
        return self._json.allowed()

    def accept(self, token: int, room: int) -> int:
        self._begun = True
        return self._json.accept(token, room)


@dataclass(frozen=True, kw_only=True)
class _Tool:
    spec: ToolSpec
    schema: Mapping[str, JSON]
    tails: Tails
    shortest: int
    """Tokens of the shortest arguments known."""


class ToolCalls:
    """Text, then calls of the declared tools."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        closer: Closer,
        tools: Mapping[int, ToolSpec],
        *,
        content: Content,
        first_index: int,
        must_call: bool,
        max_calls: int = MAX_CALLS,
    ) -> None:
        """`tools`: those that may be called, by their place in the request. `first_index`: number of the next call in
        the conversation. `must_call`: the answer begins with a call.

        Raises RequestError for a tool whose name cannot be written or whose schema cannot be enforced.
        """
        self._vocabulary, self._closer = vocabulary, closer
        self._tools = [self._compile(i, tool) for i, tool in tools.items()]
        self._first_index, self._must_call, self._max_calls = first_index, must_call, max_calls
        self._num_calls = 0
        self._state: Literal["text", "section", "header", "arguments", "ended"] = "text"
        self._header: llguidance.LLMatcher | None = None
        self._header_bytes = b""
        self._arguments: JsonText | None = None
        self._content = content

    def _compile(self, index: int, tool: ToolSpec) -> _Tool:
        _check_name(tool.name, field=f"tools[{index}].function.name")
        field = f"tools[{index}].function.parameters"
        schema = dict(tool.parameters)
        if schema.setdefault("type", "object") != "object":
            raise RequestError(f"{field}.type is {schema['type']!r}; expected 'object'", field=field)
        matcher = self._vocabulary.matcher_of_schema(schema, field=field)
        tails = self._closer.tails(schema)
        ending = self._closer.ending(matcher, JsonPlace(), MAX_ENDING_TOKENS, tails=tails)
        if ending is None:
            raise RequestError(
                f"{field} cannot be enforced: no arguments of at most {MAX_ENDING_TOKENS} tokens satisfy it",
                field=field,
            )
        return _Tool(spec=tool, schema=schema, tails=tails, shortest=len(ending))

    def begin(self, room: int) -> bool:
        if self._must_call:
            return bool(self._affordable(room - 1))
        return self._content.begin(room)

    def _affordable(self, room: int) -> list[_Tool]:
        """Tools of which a whole call fits into `room` tokens, its markers and its section's end included."""
        return [tool for tool in self._tools if 2 + len(self._id_of(tool)) + tool.shortest + CLOSING_TOKENS <= room]

    def _id_of(self, tool: _Tool) -> bytes:
        # A token is at least one byte, so that the header has at most as many tokens.
        return f"functions.{tool.spec.name}:{self._first_index + self._num_calls}".encode()

    def allowed(self, room: int) -> Mask:
        vocabulary = self._vocabulary
        match self._state:
            case "text":
                if self._must_call:
                    return vocabulary.only(vocabulary.section_begin)
                mask = self._content.allowed(room)
                if self._content.may_pause and self._affordable(room - 1):
                    mask = mask.copy()
                    mask[vocabulary.section_begin] = True
                return mask
            case "section":
                if not self._num_calls:
                    return vocabulary.only(vocabulary.call_begin)
                if self._num_calls < self._max_calls and self._affordable(room):
                    return vocabulary.only(vocabulary.call_begin, vocabulary.section_end)
                return vocabulary.only(vocabulary.section_end)
            case "header":
                assert self._header is not None
                mask = vocabulary.allowed_by(self._header)
                mask[vocabulary.argument_begin] = self._header.is_accepting()
                return mask
            case "arguments":
                assert self._arguments is not None
                return self._arguments.allowed()
            case "ended":
                return vocabulary.only(vocabulary.im_end)

    def accept(self, token: int, room: int) -> int:
        vocabulary = self._vocabulary
        if self._state == "text" and token == vocabulary.section_begin:
            self._state = "section"
        elif self._state == "text":
            return self._content.accept(token, room)
        elif self._state == "section" and token == vocabulary.section_end:
            self._state = "ended"
        elif self._state == "section":
            names = tuple(self._id_of(tool).decode() for tool in self._affordable(room))
            self._header, self._header_bytes = vocabulary.matcher_of_choice(names), b""
            self._state = "header"
        elif self._state == "header":
            self._accept_header(token, room)
        elif self._state == "arguments":
            assert self._arguments is not None
            token = self._arguments.accept(token, room)
            if token == vocabulary.call_end:
                self._num_calls += 1
                self._state = "section"
        return token

    def _accept_header(self, token: int, room: int) -> None:
        assert self._header is not None
        if token != self._vocabulary.argument_begin:
            taken = self._header.consume_token(token)
            assert taken, "a token outside the mask"
            self._header_bytes += self._vocabulary.tokenizer.decode_bytes([token])
            return
        tool = next(tool for tool in self._tools if self._id_of(tool) == self._header_bytes)
        matcher = self._vocabulary.matcher_of_schema(tool.schema, field="tools")
        self._arguments = JsonText(
            self._vocabulary,
            self._closer,
            matcher,
            tails=tool.tails,
            end=self._vocabulary.call_end,
            reserve=CLOSING_TOKENS,
        )
        fits = self._arguments.begin(room - 1)
        assert fits, "a call was opened for which there is no room"
        self._state = "arguments"

    @property
    def has_open_call(self) -> bool:
        """Whether the answer would end within a call."""
        return self._state in ("header", "arguments")


def _check_name(name: str, *, field: str) -> None:
    """Refuse a name with which a call could not be read back."""
    if not name.isprintable() or name_of(f"functions.{name}:0") != CallName(name, 0):
        raise RequestError(
            f"{field} is {name!r}; expected no white space, quotes, brackets, backslashes or control characters",
            field=field,
        )


class Constraints:
    """Makes the constraint that a request asks for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._closer = Closer(vocabulary)

    def of_text(self, *, ignore_end: bool) -> Constraint:
        """The constraint of a plain continuation."""
        return FreeText(self._vocabulary, bars_end=ignore_end)

    def of_chat(self, request: ChatRequest, *, first_index: int) -> Constraint:
        """The constraint of an answer. Raises RequestError for a schema that cannot be enforced."""
        choice = request.tool_choice
        content: Content = FreeText(self._vocabulary, bars_end=request.sampling.ignore_eos)
        if request.response_format is not None:
            content = JsonAnswer(self._vocabulary, self._closer, request.response_format)
        if not request.tools or choice == "none":
            return content
        single = isinstance(choice, NamedTool) or not request.parallel_tool_calls
        return ToolCalls(
            self._vocabulary,
            self._closer,
            {
                index: tool
                for index, tool in enumerate(request.tools)
                if not isinstance(choice, NamedTool) or tool.name == choice.name
            },
            content=content,
            first_index=first_index,
            must_call=choice != "auto",
            max_calls=1 if single else MAX_CALLS,
        )
