"""Everything that talks: tokenizer, messages, K2's wire format, and the Completer protocol with its forms.

Owns the vocabulary, the template and the tool-call parser; never loads torch. Read `messages`, `completer`, `template`,
`tool_call_parser`, then `tokenizer`.
"""

from typing import TYPE_CHECKING

from chogori._lazy import lazy_exports

if TYPE_CHECKING:
    from chogori.chat.completer import (
        ChatRequest,
        Completer,
        Completion,
        Event,
        JsonFormat,
        NamedTool,
        Sampling,
        TextRequest,
        complete,
    )
    from chogori.chat.language_samples import SAMPLES
    from chogori.chat.messages import Message, ToolCall, ToolSpec
    from chogori.chat.tokenizer import Tokenizer, bytes_per_token

__all__ = [
    "Message",
    "ToolCall",
    "ToolSpec",
    "ChatRequest",
    "TextRequest",
    "Sampling",
    "NamedTool",
    "JsonFormat",
    "Event",
    "Completer",
    "Completion",
    "complete",
    "Tokenizer",
    "bytes_per_token",
    "SAMPLES",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Message": "messages",
        "ToolCall": "messages",
        "ToolSpec": "messages",
        "ChatRequest": "completer",
        "TextRequest": "completer",
        "Sampling": "completer",
        "NamedTool": "completer",
        "JsonFormat": "completer",
        "Event": "completer",
        "Completer": "completer",
        "Completion": "completer",
        "complete": "completer",
        "Tokenizer": "tokenizer",
        "bytes_per_token": "tokenizer",
        "SAMPLES": "language_samples",
    },
)
