"""What the choices of a chat completion say, in one form for an answer at once and for a stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

Choices = dict[int, dict[str, Any]]


def whole_choices(answer: ChatCompletion) -> Choices:
    """What each choice says, without ids of the answer."""
    return {
        choice.index: {
            "content": choice.message.content or "",
            "calls": [
                (call.id, call.function.name, call.function.arguments)
                for call in choice.message.tool_calls or ()
                if call.type == "function"
            ],
            "logprobs": (choice.logprobs and choice.logprobs.content) or [],
            "finish_reason": choice.finish_reason,
        }
        for choice in answer.choices
    }


def streamed_choices(chunks: Iterable[ChatCompletionChunk]) -> tuple[Choices, CompletionUsage | None]:
    """The same from the chunks of a stream, and its usage. (The SDK's own collector refuses answers that are cut.)"""
    choices: Choices = {}
    usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for piece in chunk.choices:
            empty: dict[str, Any] = {"content": "", "calls": [], "logprobs": [], "finish_reason": None}
            choice = choices.setdefault(piece.index, empty)
            assert choice["finish_reason"] is None, "a choice went on after its end"
            choice["content"] += piece.delta.content or ""
            for call in piece.delta.tool_calls or ():
                function = call.function
                assert function is not None
                if call.id:
                    assert call.index == len(choice["calls"])
                    choice["calls"].append((call.id, function.name, function.arguments or ""))
                else:
                    call_id, name, arguments = choice["calls"][call.index]
                    choice["calls"][call.index] = (call_id, name, arguments + (function.arguments or ""))
            choice["logprobs"] += (piece.logprobs and piece.logprobs.content) or []
            choice["finish_reason"] = piece.finish_reason
    return choices, usage
