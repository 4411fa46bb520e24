"""Counting the tokens of a request without the model's own template and vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable

from chogori.chat.completer import ChatRequest, TextRequest


def tokens_of_four_bytes(text: str) -> int:
    """The tokens of a text where nobody says otherwise: one for every four bytes begun, which is near English's."""
    return -(-len(text.encode()) // 4)


def count_prompt_tokens(request: ChatRequest | TextRequest, count_tokens: Callable[[str], int]) -> int:
    """The tokens of a request's texts: contents, calls and tool declarations, without what a template puts around."""
    if isinstance(request, TextRequest):
        return count_tokens(request.prompt) if isinstance(request.prompt, str) else len(request.prompt)
    texts = [json.dumps(tool.declaration, ensure_ascii=False) for tool in request.tools]
    for message in request.messages:
        texts.append(message.content)
        for call in message.tool_calls:
            texts += [call.name, call.arguments]
    return sum(count_tokens(text) for text in texts)


def num_earlier_calls(request: ChatRequest | TextRequest) -> int:
    """Calls in the conversation so far: the index that K2 gives the next one."""
    messages = request.messages if isinstance(request, ChatRequest) else ()
    return sum(len(message.tool_calls) for message in messages)
