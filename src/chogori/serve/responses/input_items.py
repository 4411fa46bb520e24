"""The items that the input of a response is made of, and the conversation that they are.

Items come back as an earlier response wrote them, with ids, statuses and annotations that mean nothing here; such
fields of an item are let pass. An item or part of an unknown type is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from chogori.chat.messages import Message, ToolCall
from chogori.errors import RequestError

ITEMS_READ = ("message", "function_call", "function_call_output", "reasoning")
PARTS_READ = ("input_text", "output_text", "text", "refusal")
_STRICT = ConfigDict(strict=True)


class TextPart(BaseModel):
    """A piece of a text."""

    model_config = _STRICT
    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(BaseModel):
    """A piece in which the assistant declined; read like any other text of its."""

    model_config = _STRICT
    type: Literal["refusal"]
    refusal: str


def type_of(value: object) -> object:
    """The `type` of an object that may be anything yet."""
    if isinstance(value, Mapping):
        return cast(Mapping[str, object], value).get("type")
    return getattr(value, "type", None)


def _known_part(value: object) -> object:
    kind = type_of(value)
    if isinstance(kind, str) and kind not in PARTS_READ:
        raise PydanticCustomError(
            "unsupported_part",
            "a part of type {kind} cannot be read: this model reads text only; expected {expected}",
            {"kind": repr(kind), "expected": ", ".join(PARTS_READ)},
        )
    return value


def _known_item(value: object) -> object:
    kind = type_of(value)
    if kind == "item_reference":
        raise PydanticCustomError(
            "item_reference", "the item is stored nowhere: this server keeps no responses; expected the item itself"
        )
    if isinstance(kind, str) and kind not in ITEMS_READ:
        raise PydanticCustomError(
            "unsupported_item",
            "an item of type {kind} cannot be read; expected {expected}",
            {"kind": repr(kind), "expected": ", ".join(ITEMS_READ)},
        )
    return value


# Tags that are no identifiers are left out of the paths in error messages.
def _tag_of_part(value: object) -> str:
    return "a refusal" if type_of(value) == "refusal" else "a text"


def _tag_of_item(value: object) -> str:
    kind = type_of(value)
    return f"a {kind}" if kind in ITEMS_READ else "a message"


def _text_or_list(value: object) -> str | None:
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else None


Part = Annotated[
    Annotated[TextPart, Tag("a text")] | Annotated[RefusalPart, Tag("a refusal")],
    Discriminator(_tag_of_part),
    BeforeValidator(_known_part),
]
Content = Annotated[
    Annotated[str, Tag("a text")] | Annotated[list[Part], Tag("a list")],
    Discriminator(
        _text_or_list,
        custom_error_type="content_type",
        custom_error_message="Input should be a valid string or a list of parts",
    ),
]


class MessageItem(BaseModel):
    """What somebody said."""

    model_config = _STRICT
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(BaseModel):
    """A call that the assistant made."""

    model_config = _STRICT
    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str


class FunctionCallOutputItem(BaseModel):
    """What a call came to."""

    model_config = _STRICT
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: Content


class ReasoningItem(BaseModel):
    """Echoed thoughts of another model; accepted and left out, since K2 does not think at length."""

    model_config = _STRICT
    type: Literal["reasoning"]


Item = Annotated[
    Annotated[MessageItem, Tag("a message")]
    | Annotated[FunctionCallItem, Tag("a function_call")]
    | Annotated[FunctionCallOutputItem, Tag("a function_call_output")]
    | Annotated[ReasoningItem, Tag("a reasoning")],
    Discriminator(_tag_of_item),
    BeforeValidator(_known_item),
]
Input = Annotated[
    Annotated[str, Tag("a text")] | Annotated[list[Item], Field(min_length=1), Tag("a list")],
    Discriminator(
        _text_or_list,
        custom_error_type="input_type",
        custom_error_message="Input should be a valid string or a list of items",
    ),
]


def read_input(value: str | Sequence[Item], *, instructions: str | None) -> list[Message]:
    """The conversation of a request; instructions are its first system message.

    Raises RequestError that names the item, such as `input[3].call_id`, and for an input that says nothing.
    """
    conversation = _Conversation()
    if instructions is not None:
        conversation.add(Message(role="system", content=instructions))
    if isinstance(value, str):
        conversation.add(Message(role="user", content=value))
        return conversation.messages
    if all(isinstance(item, ReasoningItem) for item in value):
        raise RequestError("input holds no message; expected at least one item besides reasoning", field="input")
    for i, item in enumerate(value):
        match item:
            case MessageItem(role="assistant"):
                conversation.say(_text(item.content))
            case MessageItem(role="user"):
                conversation.add(Message(role="user", content=_text(item.content)))
            case MessageItem():
                conversation.add(Message(role="system", content=_text(item.content)))
            case FunctionCallItem():
                conversation.call(ToolCall(id=item.call_id, name=item.name, arguments=item.arguments))
            case FunctionCallOutputItem():
                conversation.answer(item.call_id, _text(item.output), where=f"input[{i}].call_id")
            case ReasoningItem():
                pass
    conversation.end_turn()
    return conversation.messages


class _Conversation:
    """Messages in the making. An assistant's text and the calls around it are items of their own, but one message."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._open_ids: Counter[str] = Counter()

    def say(self, text: str) -> None:
        """Add text of the assistant: to its turn where a call precedes it, else as a turn of its own."""
        if not self._calls:
            self.end_turn()
        self._texts.append(text)

    def call(self, call: ToolCall) -> None:
        """Add a call to the assistant's turn."""
        self._calls.append(call)
        self._open_ids[call.id] += 1

    def answer(self, call_id: str, output: str, *, where: str) -> None:
        """Add what a call came to."""
        if not self._open_ids[call_id]:
            raise RequestError(
                f"{where} is {call_id!r}; expected the call_id of an earlier function_call that has no output yet",
                field=where,
            )
        self._open_ids[call_id] -= 1
        self.add(Message(role="tool", tool_call_id=call_id, content=output))

    def add(self, message: Message) -> None:
        """Add what somebody else said."""
        self.end_turn()
        self.messages.append(message)

    def end_turn(self) -> None:
        """Make one message of what the assistant said and called."""
        if self._texts or self._calls:
            message = Message(role="assistant", content="".join(self._texts), tool_calls=tuple(self._calls))
            self.messages.append(message)
            self._texts, self._calls = [], []


def _text(content: str | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)
