"""Conversations drawn at random: what a client may send, in every shape that the template must render alike."""

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from chogori.chat.messages import JSON, Message, ToolCall, ToolSpec, tool_from_openai
from chogori.chat.special_tokens import K2_OFFSETS

# What breaks templates: their own syntax, HTML, line ends and spaces at the edges, quotes, K2's own headings.
PLAIN = [
    *(
        "",
        " ",
        "\n",
        "\r\n",
        "\t",
        "  \n\n",
        "Hello",
        "don't",
        "12345",
        '{"a": [1, "b"]}',
        "<b>&amp;</b>",
        "'",
        '"',
        "\\n",
    ),
    *(
        "{{ x }}",
        "{% if %}",
        "{# note #}",
        "天気はどう？",
        "你好，世界",
        "🙂👩‍👩‍👧",
        "é",
        "e\u0301",
        "\u2028",
        "\ufeff",
        "\x00",
    ),
    *(" ## Return of functions.get:0\n", "functions.get:0", "<|im_", "|>", "tool_declare", "CONTINUE"),
]
MARKERS = list(K2_OFFSETS)
NAMES = ["Alice", "山田", "example_user", "two words", "tool", "assistant", " x", "{{ y }}"]
TOOL_NAMES = ["get", "search.web", "天気-now", "$web_search", "run_code", "functions.odd", "with:colon"]
CLIENT_IDS = ["call_0", "call_1", "toolu_01A", "functions.get:0", "7", "呼"]


def random_text(random: Random, spells_markers: bool, least: int = 0) -> str:
    pieces = PLAIN + MARKERS if spells_markers else PLAIN
    return "".join(random.choice(pieces) for _ in range(random.randint(least, 5)))


def random_tools(random: Random, spells_markers: bool) -> list[ToolSpec]:
    return [_tool(random, name, spells_markers) for name in random.sample(TOOL_NAMES, random.randint(0, 3))]


def random_conversation(random: Random, *, spells_markers: bool, own_ids: bool = True) -> list[Message]:
    """At least one message. With `own_ids`, calls carry ids of a client's own, which repeat; else none."""
    messages: list[Message] = []
    unanswered: list[str] = []
    if random.random() < 0.4:
        messages.append(Message(role="system", content=random_text(random, spells_markers), name=_name(random)))
    for _ in range(random.randint(1, 6)):
        roll = random.random()
        if unanswered and roll < 0.5:
            # In any order, and possibly after later turns.
            call_id = unanswered.pop(random.randrange(len(unanswered)))
            content = random_text(random, spells_markers)
            name = _name(random, without="tool")
            messages.append(Message(role="tool", content=content, tool_call_id=call_id, name=name))
        elif roll < 0.8:
            calls = _calls(random, spells_markers, own_ids) if random.random() < 0.6 else ()
            unanswered += [call.id for call in calls if call.id]
            content = random_text(random, spells_markers)
            name = _name(random, without="assistant")
            messages.append(Message(role="assistant", content=content, tool_calls=calls, name=name))
        elif roll < 0.9:
            messages.append(Message(role="user", content=random_text(random, spells_markers), name=_name(random)))
        else:
            messages.append(Message(role="system", content=random_text(random, spells_markers), name=_name(random)))
    if random.random() < 0.2:
        calls = _calls(random, spells_markers, own_ids) if random.random() < 0.2 else ()
        content = "So" + random_text(random, spells_markers)
        messages.append(Message(role="assistant", content=content, tool_calls=calls, partial=True))
    return messages


def openai_shape(message: Message, random: Random) -> dict[str, Any]:
    """The message as one of the dicts that clients, vLLM and SGLang hand to a template."""
    shape: dict[str, Any] = message.to_openai()
    if message.role == "system" and random.random() < 0.2:
        shape["role"] = "developer"
    roll = random.random()
    if roll < 0.3:
        half = len(message.content) // 2
        texts = [message.content[:half], message.content[half:]]
        shape["content"] = [{"type": "text", "text": text} for text in texts]
    elif roll < 0.4:
        shape["content"] = [message.content]
    elif roll < 0.5 and not message.content:
        del shape["content"]
    if not message.tool_calls and random.random() < 0.3:
        shape["tool_calls"] = random.choice([None, []])
    for call in shape.get("tool_calls") or []:
        function = call["function"]
        # vLLM parses arguments before it renders.
        if random.random() < 0.5 and _is_compact_object(function["arguments"]):
            function["arguments"] = json.loads(function["arguments"])
    return shape


def _name(random: Random, without: str = "") -> str | None:
    return random.choice([name for name in NAMES if name != without]) if random.random() < 0.2 else None


def _calls(random: Random, spells_markers: bool, own_ids: bool) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(
            id=random.choice([*CLIENT_IDS, "", f"call_{random.getrandbits(40):x}"]) if own_ids else "",
            name=random.choice(TOOL_NAMES),
            arguments=_arguments(random, spells_markers),
        )
        for _ in range(random.randint(1, 3))
    )


def _arguments(random: Random, spells_markers: bool) -> str:
    value = {
        random_text(random, spells_markers): _value(random, spells_markers, 2) for _ in range(random.randint(0, 2))
    }
    roll = random.random()
    if roll < 0.6:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if roll < 0.9:
        return json.dumps(value)
    return random.choice(["", '{"a": ', "not JSON", "[1, 2]"])


def _value(random: Random, spells_markers: bool, depth: int) -> JSON:
    kind = random.randrange(7 if depth else 5)
    if kind == 5:
        return [_value(random, spells_markers, depth - 1) for _ in range(random.randint(0, 2))]
    if kind == 6:
        return {random_text(random, spells_markers): _value(random, spells_markers, depth - 1)}
    return (None, True, random.randint(-(2**40), 2**40), random.uniform(-1, 1), random_text(random, spells_markers))[
        kind
    ]


def _tool(random: Random, name: str, spells_markers: bool) -> ToolSpec:
    if name.startswith("$"):
        return tool_from_openai({"type": "builtin_function", "function": {"name": name}})
    parameters: Mapping[str, JSON] = {
        "type": "object",
        "properties": {
            random_text(random, spells_markers): {
                "type": "array",
                "items": {"enum": [_value(random, spells_markers, 2)]},
            },
            "städte": {
                "anyOf": [{"type": "string", "description": random_text(random, spells_markers)}, {"$ref": "#/x"}]
            },
        },
        "required": ["städte"],
    }
    description = random_text(random, spells_markers)
    if random.random() < 0.5:
        return ToolSpec(name=name, description=description, parameters=parameters)
    function: Mapping[str, JSON] = {
        "strict": True,
        "parameters": parameters,
        "name": name,
        "x-α": _value(random, spells_markers, 2),
    }
    return tool_from_openai({"function": function, "type": "function", "note": None})


def _is_compact_object(text: str) -> bool:
    try:
        value: object = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and json.dumps(value, ensure_ascii=False, separators=(",", ":")) == text
