"""A tool call as a backend gave it, held against the tools that were declared: sound, put right, or broken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chogori.chat.completer import RepairKind
from chogori.chat.json_prefix import JsonPrefix
from chogori.chat.messages import ToolSpec
from chogori.chat.tool_call_events import name_of
from chogori.chat.tool_ids import tool_call_id
from chogori.errors import MessageError
from chogori.serve.argument_schema import ArgumentSchema
from chogori.serve.gateway.argument_repair import UnfitArguments, fitting_arguments

_PREFIX = "functions."


@dataclass(frozen=True, kw_only=True, slots=True)
class RawCall:
    """A call as it came."""

    id: str
    name: str
    """Empty where none was given."""
    arguments: str
    ended: bool = True
    """Whether it came to an end, rather than the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundCall:
    """A call of a declared tool, whose arguments satisfy its schema."""

    raw_id: str
    name: str
    arguments: str
    repairs: tuple[RepairKind, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenCall:
    """A call that only the model can put right."""

    raw_id: str
    name: str | None
    """The declared tool that it calls; None where that cannot be told."""
    arguments: str
    reason: str
    """What is wrong, for the model and for people."""
    can_go_on: bool = False
    """Whether its arguments are the beginning of JSON, so that it can be continued."""


class DeclaredTools:
    """The tools of a request.

    Raises MessageError for a schema that cannot be followed: no call could then be called valid.
    """

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._schemas: Mapping[str, ArgumentSchema] = {
            tool.name: _schema_of(tool, f"tools[{i}]") for i, tool in enumerate(tools)
        }

    @property
    def names(self) -> Iterable[str]:
        """As declared."""
        return self._schemas

    def examined(self, call: RawCall) -> SoundCall | BrokenCall:
        """The call as it was where it is sound, put right where that needs no guess, or broken."""
        name = self.name_meant(call.name if call.name.strip() else call.id)
        if name is None and not call.name.strip() and len(self._schemas) == 1:
            (name,) = self._schemas
        if name is None:
            said = f"there is no tool named {call.name!r}" if call.name else "it names no tool"
            return BrokenCall(raw_id=call.id, name=None, arguments=call.arguments, reason=said)
        try:
            arguments = fitting_arguments(call.arguments, self._schemas[name])
        except UnfitArguments as error:
            return BrokenCall(
                raw_id=call.id,
                name=name,
                arguments=call.arguments,
                reason=str(error),
                can_go_on=_is_beginning(call.arguments),
            )
        if not call.ended and not call.arguments.strip():
            # Nothing of its arguments came; that they are none is more than was said.
            return BrokenCall(raw_id=call.id, name=name, arguments="", reason="it was cut off before its arguments")
        repairs: list[RepairKind] = []
        if name != call.name:
            repairs.append("name")
        if arguments != call.arguments:
            repairs.append("arguments")
        return SoundCall(raw_id=call.id, name=name, arguments=arguments, repairs=tuple(repairs))

    def name_meant(self, raw: str) -> str | None:
        """The declared name that a name or id means: without prefix, number, or in other case, if only one does."""
        raw = raw.strip()
        spellings = (raw, name_of(raw).name, raw.removeprefix(_PREFIX), name_of(raw.removeprefix(_PREFIX)).name)
        for spelling in spellings:
            if spelling in self._schemas:
                return spelling
        folded = {spelling.casefold() for spelling in spellings if spelling}
        alike = [name for name in self._schemas if name.casefold() in folded]
        return alike[0] if len(alike) == 1 else None

    def name_begun(self, raw: str) -> str | None:
        """The one declared name that a name or id cut short can become."""
        begun = raw.strip().removeprefix(_PREFIX)
        possible = [name for name in self._schemas if begun and name.startswith(begun)]
        return possible[0] if len(possible) == 1 else None

    def may_be_id(self, raw: str) -> bool:
        """Whether a text is the id of a declared tool, or the beginning of one."""
        raw = raw.strip()
        return bool(self.name_meant(raw)) or any(
            whole.startswith(raw) for name in self._schemas for whole in (name, _PREFIX + name)
        )


def sound_id(raw: str, name: str, index: int, taken: Iterable[str]) -> str:
    """The id under which call number `index` of the conversation leaves.

    K2's own form is `functions.NAME:IDX`, and what is almost that is put right. A server's id of any other form stays,
    if no other call has it.
    """
    is_almost_ours = raw.startswith(_PREFIX) or name_of(raw).index is not None or raw == name or raw.isdigit()
    if raw.strip() and not is_almost_ours and raw not in taken:
        return raw
    return tool_call_id(name, index)


def _schema_of(tool: ToolSpec, where: str) -> ArgumentSchema:
    try:
        return ArgumentSchema.of(tool.parameters)
    except MessageError as error:
        raise MessageError(f"{where} ({tool.name}): {error}", field="tools") from error


def _is_beginning(arguments: str) -> bool:
    """Whether this is the beginning of a JSON object, and not the whole."""
    prefix = JsonPrefix()
    prefix.feed(arguments)
    return arguments.lstrip().startswith("{") and not prefix.is_broken and not prefix.is_complete
