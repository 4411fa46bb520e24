from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.stop_texts import StopTexts

letters = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def shown_before_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What may be shown of a whole text, and the stop text that is complete first, the longer of two."""
    for end in range(len(text) + 1):
        found = max((stop for stop in stops if text[:end].endswith(stop)), key=len, default=None)
        if found is not None:
            return text[: end - len(found)], found
    return text, None


@given(text=letters, stops=stops, sizes=st.lists(st.integers(1, 5), min_size=1))
def test_any_chunking_shows_what_comes_before_the_first_stop_text(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    stream = StopTexts(stops)
    shown, place = "", 0
    for i in range(len(text)):
        piece = text[place : place + sizes[i % len(sizes)]]
        place += len(piece)
        shown += stream.feed(piece)
    if stream.found is None:
        shown += stream.finish()
    assert (shown, stream.found) == shown_before_stop(text, stops)


def test_only_what_may_become_a_stop_text_is_held_back() -> None:
    stream = StopTexts(["###"])
    assert stream.feed("a#") == "a"
    assert stream.feed("b##") == "#b"
    assert stream.feed("#x") == ""
    assert stream.found == "###"
    assert stream.feed("more") == ""


def test_an_unfinished_stop_text_is_shown_at_the_end() -> None:
    stream = StopTexts(["END", "EN\n"])
    assert stream.feed("the EN") == "the "
    assert stream.finish() == "EN"
    assert stream.found is None
