"""The messages and tools of a cache as the model reads them, and whether a conversation goes on from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from chogori.chat.completer import ChatRequest
from chogori.chat.messages import Message, ToolSpec
from chogori.errors import RequestError
from chogori.serve.caching.context_cache import CacheContent
from chogori.serve.openai.chat_request import read_messages, read_tools


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The messages and tools of a cache, as the model reads them."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]

    @classmethod
    def read(cls, content: CacheContent) -> Self:
        """Read what a client sent. Raises RequestError that names the field."""
        prefix = cls(
            messages=tuple(read_messages([dict(message) for message in content.messages])),
            tools=tuple(read_tools([dict(tool) for tool in content.tools])),
        )
        if any(message.partial for message in prefix.messages):
            raise RequestError("messages: a cached message cannot be partial", field="messages")
        return prefix

    def request(self, model: str) -> ChatRequest:
        """The prefix as a conversation of its own."""
        return ChatRequest(messages=self.messages, tools=self.tools, model=model)

    def begins(self, asked: ChatRequest) -> bool:
        """Whether a conversation goes on from this one, with the same tools, read by the model alike."""
        tools = () if asked.tool_choice == "none" else tuple(asked.tools)
        return tuple(asked.messages[: len(self.messages)]) == self.messages and tools == self.tools
