"""JSON schemas of messages and tools, for the OpenAPI document; `chat.messages` reads them by the same rules."""

from __future__ import annotations

from pydantic import JsonValue

_TEXT: dict[str, JsonValue] = {"type": "string"}
_PART: dict[str, JsonValue] = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["text"]}, "text": _TEXT},
}
_CONTENT: dict[str, JsonValue] = {"anyOf": [_TEXT, {"type": "array", "items": _PART}]}
_CONTENT_OR_NULL: dict[str, JsonValue] = {"anyOf": [_TEXT, {"type": "array", "items": _PART}, {"type": "null"}]}
_CALL: dict[str, JsonValue] = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
        "id": _TEXT,
        "type": {"enum": ["function", "builtin_function"]},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string", "minLength": 1}, "arguments": _TEXT},
        },
    },
}


def _message(roles: list[JsonValue], required: list[JsonValue], **properties: JsonValue) -> JsonValue:
    return {
        "type": "object",
        "required": ["role", *required],
        "properties": {"role": {"enum": roles}, "name": {"type": ["string", "null"]}, **properties},
    }


_SPOKEN: list[JsonValue] = [
    _message(["system", "developer", "user"], ["content"], content=_CONTENT),
    _message(
        ["assistant"],
        [],
        content=_CONTENT_OR_NULL,
        tool_calls={"type": ["array", "null"], "items": _CALL},
        partial={
            "type": ["boolean", "null"],
            "description": "Of the last message: continue it (Moonshot's partial mode).",
        },
    ),
    _message(["tool"], ["content", "tool_call_id"], content=_CONTENT, tool_call_id={"type": "string", "minLength": 1}),
]
_CACHE: dict[str, JsonValue] = {
    "type": "string",
    "description": "Of the first message: the context cache that it stands for, cache_id=ID or tag=NAME; then, where "
    "wanted, ;reset_ttl=SECONDS and ;dry_run=1. No tools may be given beside it.",
}
MESSAGE: dict[str, JsonValue] = {"title": "Message", "oneOf": _SPOKEN}
MESSAGE_OR_CACHE: dict[str, JsonValue] = {
    "title": "MessageOrCache",
    "oneOf": [*_SPOKEN, _message(["cache"], ["content"], content=_CACHE)],
}
TOOL: dict[str, JsonValue] = {
    "title": "Tool",
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"enum": ["function", "builtin_function"]},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "description": _TEXT,
                "parameters": {"type": "object", "description": "JSON schema of the arguments object."},
            },
        },
    },
}
