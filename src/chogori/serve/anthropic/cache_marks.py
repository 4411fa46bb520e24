"""Where a request marks its prompt for the cache.

Every prefix is cached here, marked or not, and nothing of it costs more. The marks decide one thing: which of the
tokens that were not found in the cache are reported as written to it, `cache_creation_input_tokens`. These are the ones
up to the last mark.
"""

from __future__ import annotations

from collections.abc import Sequence

from chogori.chat.completer import ChatRequest
from chogori.chat.messages import Message
from chogori.serve.anthropic.content_blocks import Block, MessageParam, RedactedThinkingBlock, ThinkingBlock
from chogori.serve.anthropic.conversation import read_conversation
from chogori.serve.anthropic.message_request import Prompt
from chogori.serve.anthropic.tools import read_tools


def marked_prompt(body: Prompt, *, model: str) -> ChatRequest | None:
    """The part of a prompt that ends with the last mark, to be counted; None where nothing is marked."""
    # A prompt holds the tools, the system prompt and the messages, in this order.
    messages, system, tools = body.messages, body.system, body.tools or []
    if body.cache_control is None:
        messages = _marked_messages(messages)
        if not messages and system is not None:
            system = None if isinstance(system, str) else system[: _end_of_marked(system)]
        if not messages and not system:
            ends = [i for i, tool in enumerate(tools, start=1) if tool.cache_control]
            tools = tools[: ends[-1]] if ends else []
            if not tools:
                return None
    conversation = read_conversation(system, messages, is_beginning=True)
    return ChatRequest(
        messages=conversation or [Message(role="system")],
        tools=read_tools(tools),
        tool_choice="none" if body.tool_choice is not None and body.tool_choice.type == "none" else "auto",
        model=model,
    )


def _marked_messages(messages: Sequence[MessageParam]) -> list[MessageParam]:
    for i in reversed(range(len(messages))):
        message = messages[i]
        if not isinstance(message.content, str) and (end := _end_of_marked(message.content)):
            return [*messages[:i], message.model_copy(update={"content": message.content[:end]})]
    return []


def _end_of_marked(blocks: Sequence[Block]) -> int:
    """How many blocks there are up to the last that has a mark."""
    return max((i for i, block in enumerate(blocks, start=1) if _is_marked(block)), default=0)


def _is_marked(block: Block) -> bool:
    return not isinstance(block, ThinkingBlock | RedactedThinkingBlock) and block.cache_control is not None
