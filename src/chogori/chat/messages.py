"""Messages, tool calls and tool specs: OpenAI's shape as frozen records, and the way in and out of its JSON.

What enters from outside goes through `message_from_openai` and `tool_from_openai`, which refuse what cannot be and name
the field. Text parts of a content list are joined; a picture is refused, since no model here sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from chogori.errors import MessageError

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call that an assistant makes."""

    id: str
    """`functions.NAME:IDX` on the wire; clients may use ids of their own."""
    name: str
    """Name of the declared function."""
    arguments: str
    """JSON text, exactly as written. Valid JSON when the model is done; not checked here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str = ""
    """Text; empty where an assistant only calls tools."""
    name: str | None = None
    """Who speaks, in place of the role's own name."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of an assistant, after its content."""
    tool_call_id: str | None = None
    """Of a tool's result: the call it answers."""
    partial: bool = False
    """Of a last assistant message: the model continues it instead of answering (Moonshot's partial mode)."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise MessageError(f"role is {self.role!r}; expected one of {', '.join(ROLES)}")
        if self.tool_calls and self.role != "assistant":
            raise MessageError(f"a {self.role} message has tool_calls; only an assistant calls tools")
        if self.role == "tool" and not self.tool_call_id:
            raise MessageError("a tool message has no tool_call_id; expected the id of the call that it answers")
        if self.partial and self.role != "assistant":
            raise MessageError(f"a {self.role} message is partial; only a last assistant message can be continued")

    def to_openai(self) -> dict[str, object]:
        """The message as OpenAI's chat completions write it."""
        out: dict[str, object] = {"role": self.role}
        if self.name is not None:
            out["name"] = self.name
        out["content"] = None if self.tool_calls and not self.content else self.content
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.partial:
            out["partial"] = True
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSpec:
    """A tool that the model may call."""

    name: str
    """Unique within a request. The K2 format allows letters, digits, `_`, `-`, `.` and a leading `$`."""
    description: str = ""
    parameters: Mapping[str, JSON] = field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON schema of the arguments object."""
    declaration: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    """The tool as its owner declared it, which is what the model reads. Filled from the other fields when empty."""

    def __post_init__(self) -> None:
        if not self.name:
            raise MessageError("a tool has no name")
        if not self.declaration:
            function: dict[str, JSON] = {"name": self.name}
            if self.description:
                function["description"] = self.description
            function["parameters"] = self.parameters
            object.__setattr__(self, "declaration", {"type": "function", "function": function})

    @property
    def is_builtin(self) -> bool:
        """Whether the model's maker runs it: Moonshot's `builtin_function`, such as `$web_search`."""
        return self.declaration.get("type") == "builtin_function"


def message_from_openai(value: object, where: str = "message") -> Message:
    """Read a message of a chat-completions request; `developer` becomes `system`, text parts are joined.

    Raises MessageError that names the field, such as `messages[2].tool_calls[0].function.name`, given `where` as
    "messages[2]".
    """
    fields = _object(value, where)
    role = fields.get("role")
    if role == "developer":
        role = "system"
    if role not in ROLES:
        raise MessageError(f"{where}.role is {role!r}; expected one of developer, {', '.join(ROLES)}")
    calls = fields.get("tool_calls")
    try:
        return Message(
            role=role,
            content=_content(fields.get("content"), f"{where}.content"),
            name=_optional_text(fields.get("name"), f"{where}.name"),
            tool_calls=tuple(
                _call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(_list(calls, f"{where}.tool_calls"))
            ),
            tool_call_id=_optional_text(fields.get("tool_call_id"), f"{where}.tool_call_id"),
            partial=fields.get("partial") is True,
        )
    except MessageError as error:
        raise MessageError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def messages_from_openai(values: Sequence[object]) -> list[Message]:
    """`message_from_openai` for a whole conversation."""
    return [message_from_openai(value, f"messages[{i}]") for i, value in enumerate(values)]


def tool_from_openai(value: object, where: str = "tool") -> ToolSpec:
    """Read a tool of a chat-completions request. Raises MessageError that names the field."""
    fields = _object(value, where)
    kind = fields.get("type", "function")
    if kind not in ("function", "builtin_function"):
        raise MessageError(f'{where}.type is {kind!r}; expected "function" or "builtin_function"')
    function = _object(fields.get("function"), f"{where}.function")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise MessageError(f"{where}.function.name is {name!r}; expected a non-empty string")
    parameters = function.get("parameters")
    return ToolSpec(
        name=name,
        description=_optional_text(function.get("description"), f"{where}.function.description") or "",
        parameters=(
            {"type": "object", "properties": {}}
            if parameters is None
            else _object(parameters, f"{where}.function.parameters")
        ),
        declaration=fields,
    )


def tools_from_openai(values: Sequence[object]) -> list[ToolSpec]:
    """`tool_from_openai` for a whole list. Raises MessageError on two tools of one name."""
    tools = [tool_from_openai(value, f"tools[{i}]") for i, value in enumerate(values)]
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in seen:
            raise MessageError(f"tools[{i}].function.name is {tool.name!r}, which an earlier tool has too")
        seen.add(tool.name)
    return tools


def _call(value: object, where: str) -> ToolCall:
    fields = _object(value, where)
    function = _object(fields.get("function"), f"{where}.function")
    name, arguments = function.get("name"), function.get("arguments", "{}")
    if not isinstance(name, str) or not name:
        raise MessageError(f"{where}.function.name is {name!r}; expected a non-empty string")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    if not isinstance(arguments, str):
        raise MessageError(f"{where}.function.arguments is {type(arguments).__name__}; expected JSON text")
    return ToolCall(id=_optional_text(fields.get("id"), f"{where}.id") or "", name=name, arguments=arguments)


def _content(value: object, where: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    texts: list[str] = []
    for i, part in enumerate(_list(value, where)):
        if isinstance(part, str):
            texts.append(part)
            continue
        fields = _object(part, f"{where}[{i}]")
        kind, text = fields.get("type"), fields.get("text")
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise MessageError(f'{where}[{i}] is a part of type {kind!r}; expected "text": this model reads text only')
        texts.append(text)
    return "".join(texts)


def _object(value: object, where: str) -> Mapping[str, JSON]:
    if not isinstance(value, Mapping):
        raise MessageError(f"{where} is {type(value).__name__}; expected an object")
    return cast(Mapping[str, JSON], value)


def _list(value: object, where: str) -> Sequence[object]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise MessageError(f"{where} is {type(value).__name__}; expected a list")
    return cast(Sequence[object], value)


def _optional_text(value: object, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise MessageError(f"{where} is {type(value).__name__}; expected a string")
    return value
