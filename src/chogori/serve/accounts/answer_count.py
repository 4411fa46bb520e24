"""What an answer has consumed so far, while it streams."""

from __future__ import annotations

from collections.abc import Callable

from chogori.chat.completer import ContentDelta, Event, Started, ToolCallBegin, ToolCallDelta, Usage

CountText = Callable[[str], int]
TAIL_CHARS = 512
"""A text is counted anew with every delta up to this length; then what no longer changes is counted for good."""
_CUTS = 16


class AnswerCount:
    """Tokens of a request by its events: of the text sent while it runs, and what its Usage says in the end."""

    def __init__(self, count_text: CountText) -> None:
        self._count_text = count_text
        self._texts: dict[tuple[int, int], TextCount] = {}
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0

    @property
    def total(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens

    def observe(self, event: Event) -> bool:
        """Take an event in; whether it brought text that no event before it had."""
        match event:
            case Started():
                self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
            case ContentDelta():
                return self._add((event.choice, -1), event.text)
            case ToolCallBegin():
                return self._add((event.choice, event.index), event.name)
            case ToolCallDelta():
                return self._add((event.choice, event.index), event.arguments)
            case Usage():
                self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
                self.completion_tokens = event.completion_tokens
            case _:
                pass
        return False

    def _add(self, place: tuple[int, int], text: str) -> bool:
        if not text:
            return False
        count = self._texts.setdefault(place, TextCount(self._count_text))
        self.completion_tokens += count.add(text)
        return True


class TextCount:
    """The tokens of a text that grows: as many as of the whole, without counting the whole again each time.

    Its beginning is cut off only where the two parts together have as many tokens as the whole, and far from the end,
    where what comes later no longer changes the tokens; so a cut changes nothing.
    """

    def __init__(self, count_text: CountText) -> None:
        self._count_text = count_text
        self._settled = 0
        self._tail = ""
        self._total = 0
        self._try_at = TAIL_CHARS

    def add(self, text: str) -> int:
        """By how many tokens the count grows: less than none where two pieces make fewer tokens together."""
        self._tail += text
        num_tail = self._count_text(self._tail)
        grown = self._settled + num_tail - self._total
        self._total += grown
        if len(self._tail) >= self._try_at:
            self._cut(num_tail)
        return grown

    def _cut(self, num_tail: int) -> None:
        middle = len(self._tail) // 2
        for cut in range(middle, middle - _CUTS, -1):
            head, rest = self._tail[:cut], self._tail[cut:]
            num_head = self._count_text(head)
            if num_head + self._count_text(rest) == num_tail:
                self._settled += num_head
                self._tail = rest
                self._try_at = TAIL_CHARS
                return
        self._try_at = 2 * len(self._tail)
