"""The tools of a request that matter to it, where so many are declared that K2 answers worse for them.

Ranked by BM25 (Robertson and Zaragoza, 2009, with the inverse document frequency of Lucene) over names, descriptions
and parameters, with the words of the last user messages. Within one turn of an agent the same tools are sent each time,
so the prompt keeps its beginning.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from chogori.chat.completer import ChatRequest, NamedTool
from chogori.chat.messages import JSON, ToolSpec
from chogori.serve.gateway.config import ToolsConfig

TOOLS_HEADER = "x-chogori-tools"
NUM_USER_MESSAGES = 3
"""As many of the last are read for what is wanted."""
K1, B = 1.2, 0.75  # BM25's usual saturation and normalisation by length
NAME_WEIGHT = 3
"""A word of a tool's name counts as so many of its description."""

# Scripts that write no spaces between words: their pairs of characters stand for words.
_UNSPACED = "぀-ヿ㐀-䶿一-鿿豈-﫿々〆"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True, kw_only=True)
class RankedRequest:
    """A request with the tools that are sent."""

    request: ChatRequest
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """`x-chogori-tools: 12/87`, where a number of tools is set."""


def with_relevant_tools(request: ChatRequest, config: ToolsConfig) -> RankedRequest:
    """The request with its `max_sent` most relevant tools, in the order in which they were declared.

    Tools that the conversation has called, the one that `tool_choice` names and built-in ones always stay, even where
    they are more than that. With as many tools as are sent, or fewer, the request comes back as it was.
    """
    if config.max_sent is None or not request.tools:
        return RankedRequest(request=request)
    num_tools = len(request.tools)
    if num_tools > config.max_sent:
        kept = _kept(request, config.max_sent)
        request = replace(request, tools=[tool for i, tool in enumerate(request.tools) if i in kept])
    return RankedRequest(request=request, headers={TOOLS_HEADER: f"{len(request.tools)}/{num_tools}"})


def _kept(request: ChatRequest, max_sent: int) -> set[int]:
    named = {call.name for message in request.messages for call in message.tool_calls}
    if isinstance(request.tool_choice, NamedTool):
        named.add(request.tool_choice.name)
    kept = {i for i, tool in enumerate(request.tools) if tool.is_builtin or tool.name in named}
    scores = relevance(request.tools, _wanted(request))
    others = sorted((i for i in range(len(request.tools)) if i not in kept), key=lambda i: (-scores[i], i))
    return kept | set(others[: max(0, max_sent - len(kept))])


def _wanted(request: ChatRequest) -> list[str]:
    said = [message.content for message in request.messages if message.role == "user"]
    return [word for text in said[-NUM_USER_MESSAGES:] for word in words_of(text)]


def relevance(tools: Sequence[ToolSpec], wanted: Sequence[str]) -> list[float]:
    """The score of each tool for words that are wanted; 0 where it has none of them."""
    counts = [_word_counts(tool.name, json.dumps(tool.declaration, default=dict)) for tool in tools]
    lengths = [sum(count.values()) for count in counts]
    mean_length = sum(lengths) / len(lengths)
    containing = Counter(word for count in counts for word in count)
    scores = [0.0] * len(tools)
    for word in dict.fromkeys(wanted):
        rarity = math.log1p((len(tools) - containing[word] + 0.5) / (containing[word] + 0.5))
        for i, count in enumerate(counts):
            if frequency := count[word]:
                norm = K1 * (1 - B + B * lengths[i] / mean_length)
                scores[i] += rarity * frequency * (K1 + 1) / (frequency + norm)
    return scores


def words_of(text: str) -> Iterator[str]:
    """The words of a text, in lower case and without a plural's s; of Chinese and Japanese, pairs of characters."""
    for found in _WORD.finditer(text):
        word = found[0]
        if re.match(rf"[{_UNSPACED}]", word):
            yield from (word[i : i + 2] for i in range(max(1, len(word) - 1)))
            continue
        for part in _CAMEL.split(word):
            folded = part.casefold()
            yield folded[:-1] if len(folded) > 3 and folded.endswith("s") and not folded.endswith("ss") else folded


@functools.lru_cache(maxsize=4096)
def _word_counts(name: str, declaration: str) -> Counter[str]:
    """How often each word stands in a tool: requests of one agent declare the same tools again and again."""
    function = cast(JSON, json.loads(declaration))
    counts = Counter(word for text in _texts(function) for word in words_of(text))
    for word in words_of(name):
        counts[word] += NAME_WEIGHT
    return counts


_SCHEMA_WORDS = frozenset({"type", "required", "$ref", "format", "pattern"})
"""Keywords whose values are not about what a tool does."""


def _texts(value: JSON) -> Iterator[str]:
    """Descriptions, names of parameters and their options, wherever they stand."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key == "properties" and isinstance(item, Mapping):
                yield from item
                yield from (text for schema in item.values() for text in _texts(schema))
            elif key not in _SCHEMA_WORDS and key != "name":
                yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)
