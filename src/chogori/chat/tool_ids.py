"""Tool-call ids: `functions.NAME:IDX`, counted over the whole conversation from 0.

The model has seen no other form, and imitates what its history shows: an id such as `call_9f3a` there makes it write
calls that no parser reads (K2-Vendor-Verifier's first advice). So a client's ids are rewritten on the way in, and the
way back is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from chogori.chat.messages import Message
from chogori.errors import MessageError

_NUM_NAMED_IDS = 5  # as many open ids as an error message lists


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolIds:
    """The ids of one conversation's calls: those of the wire and those that its client knows."""

    to_client: Mapping[str, str]
    """From the id on the wire to the client's, for every call."""
    to_wire: Mapping[str, str]
    """From the client's id to the one on the wire; of an id that the client used again, the latest call's."""
    next_index: int
    """IDX of the next call, whichever tool it calls."""


class CanonicalConversation(NamedTuple):
    """A conversation whose calls and results carry `functions.NAME:IDX`, and whose ids these were before."""

    messages: list[Message]
    ids: ToolIds


def tool_call_id(name: str, index: int) -> str:
    """The id of a conversation's call number `index`, from 0, to a tool."""
    return f"functions.{name}:{index}"


def canonical_tool_ids(messages: Sequence[Message]) -> CanonicalConversation:
    """Number the calls of a conversation and rewrite the ids of its calls and results to match.

    Results may come in any order. Clients use an id again in a later turn (`call_0`), or twice in one turn: a result
    answers the nearest turn before it that has an open call of that id, and there the first such call. Numbering looks
    only backwards, so a longer conversation numbers its beginning alike. One that is canonical comes back unchanged.

    Raises MessageError for a result that answers no open call: none has its id, or each has its result already.
    """
    rewritten: list[Message] = []
    to_client: dict[str, str] = {}
    to_wire: dict[str, str] = {}
    # For each of the client's ids, the turns that have open calls of it, the latest last.
    open_turns: dict[str, list[deque[str]]] = {}
    for i, message in enumerate(messages):
        if message.tool_calls:
            turn: dict[str, deque[str]] = {}
            calls = list(message.tool_calls)
            for j, call in enumerate(calls):
                wire_id = tool_call_id(call.name, len(to_client))
                to_client[wire_id] = call.id
                to_wire[call.id] = wire_id
                turn.setdefault(call.id, deque()).append(wire_id)
                calls[j] = call if call.id == wire_id else replace(call, id=wire_id)
            for client_id, wire_ids in turn.items():
                open_turns.setdefault(client_id, []).append(wire_ids)
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool":
            message = replace(message, tool_call_id=_answered(message.tool_call_id or "", open_turns, i))
        rewritten.append(message)
    return CanonicalConversation(rewritten, ToolIds(to_client=to_client, to_wire=to_wire, next_index=len(to_client)))


def _answered(client_id: str, open_turns: dict[str, list[deque[str]]], position: int) -> str:
    """Take the call that a result answers off the open ones; its id on the wire."""
    turns = open_turns.get(client_id)
    if not turns:
        known = [name for name in open_turns if name]
        shown = ", ".join(known[:_NUM_NAMED_IDS]) + (" …" if len(known) > _NUM_NAMED_IDS else "")
        raise MessageError(
            f"messages[{position}].tool_call_id is {client_id!r}; expected the id of an earlier assistant's tool call "
            f"that has no result yet: {shown or 'there is none'}",
            field="messages",
        )
    wire_id = turns[-1].popleft()
    if not turns[-1]:
        turns.pop()
    if not turns:
        del open_turns[client_id]
    return wire_id
