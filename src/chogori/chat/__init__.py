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
    from chogori.chat.conversation_reader import parse_rendered, parse_rendered_text
    from chogori.chat.http_completer import HttpCompleter
    from chogori.chat.language_samples import SAMPLES
    from chogori.chat.messages import Message, ToolCall, ToolSpec
    from chogori.chat.program import ProgramCompleter
    from chogori.chat.template import Rendered, render, render_text
    from chogori.chat.tokenizer import Tokenizer, bytes_per_token
    from chogori.chat.tool_call_events import name_of
    from chogori.chat.tool_call_parser import TextParser, TokenParser
    from chogori.chat.tool_ids import canonical_tool_ids

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
    "HttpCompleter",
    "ProgramCompleter",
    "Rendered",
    "render",
    "render_text",
    "canonical_tool_ids",
    "parse_rendered",
    "parse_rendered_text",
    "TokenParser",
    "TextParser",
    "name_of",
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
        "HttpCompleter": "http_completer",
        "ProgramCompleter": "program",
        "Rendered": "template",
        "render": "template",
        "render_text": "template",
        "canonical_tool_ids": "tool_ids",
        "parse_rendered": "conversation_reader",
        "parse_rendered_text": "conversation_reader",
        "TokenParser": "tool_call_parser",
        "TextParser": "tool_call_parser",
        "name_of": "tool_call_events",
        "Tokenizer": "tokenizer",
        "bytes_per_token": "tokenizer",
        "SAMPLES": "language_samples",
    },
)
