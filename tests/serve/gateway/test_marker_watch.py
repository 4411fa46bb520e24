"""Content up to the first marker that is not merely spoken about."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.tool_call_events import Marker
from chogori.serve.gateway.marker_watch import MarkerWatch

CB, CE, SB = Marker.CALL_BEGIN.value, Marker.CALL_END.value, Marker.SECTION_BEGIN.value


def watched(pieces: list[str]) -> tuple[str, str | None]:
    """What passed, and what came from the first marker on."""
    watch = MarkerWatch()
    passed, rest = "", ""
    for piece in pieces:
        if watch.found is None:
            passed += watch.feed(piece)
        else:
            rest += piece
    return (passed + watch.finish(), None) if watch.found is None else (passed, watch.found + rest)


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("plain <b> text [EOS]", None),
        (f"yes{SB}{CB}f:0", "yes"),
        (f"`{CB}` opens", None),
        (f'"{CB}"{CE} so', f'"{CB}"'),
        (f'he said "hi"{SB}{CB}', 'he said "hi"'),
        (f"“{CB}” and 「{CE}」", None),
        (f"`{CB}", None),
        ("<|tool_calls_sect", None),
        (CE, ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_markers_are_found_in_any_pieces(text: str, passed: str | None, size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    expected = (text, None) if passed is None else (passed, text[len(passed) :])
    assert watched(pieces) == expected


@given(st.lists(st.sampled_from([*'<|`"x ', "tool", "_call", CB, CE, "[EOS]"]), max_size=10), st.integers(0, 99))
def test_pieces_make_no_difference_and_little_is_held(parts: list[str], seed: int) -> None:
    text = "".join(parts)
    random_ = random.Random(seed)
    pieces: list[str] = []
    rest = text
    while rest:
        size = random_.randint(1, 9)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert watched(pieces) == watched([text])
    watch = MarkerWatch()
    for piece in pieces:
        watch.feed(piece)
        if watch.found is not None:
            break
        assert watch.num_held <= len(SB)
