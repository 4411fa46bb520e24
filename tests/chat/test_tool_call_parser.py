"""Whatever the pieces, the parsers say the same; by ids and by text they agree wherever text can tell."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.json_prefix import JsonPrefix
from chogori.chat.special_tokens import K2_OFFSETS
from chogori.chat.tokenizer import Tokenizer
from chogori.chat.tool_call_events import CallArguments, CallName, IncompleteCall, Marker, ParsedEvent, Text, name_of
from chogori.chat.tool_call_parser import TextParser, TokenParser
from tests.chat.tool_call_cases import CASES, Broke, Called, Case, Item, spelled, summary_of

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LONGEST_MARKER = max(len(marker.value) for marker in Marker)
CB, AB, CE = Marker.CALL_BEGIN.value, Marker.ARGUMENT_BEGIN.value, Marker.CALL_END.value


def ids_of(tokenizer: Tokenizer, pieces: Sequence[str | Marker]) -> list[int]:
    ids: list[int] = []
    for piece in pieces:
        ids += [tokenizer.id_of(piece.value)] if isinstance(piece, Marker) else tokenizer.encode(piece)
    return ids


def read_text(*texts: str) -> list[Item]:
    parser = TextParser()
    events: list[ParsedEvent] = []
    for text in texts:
        events += parser.feed(text)
    return summary_of(events + parser.finish())


def read_ids(tokenizer: Tokenizer, *runs: Sequence[int]) -> list[Item]:
    parser = TokenParser(tokenizer)
    events: list[ParsedEvent] = []
    for run in runs:
        events += parser.feed(run)
    return summary_of(events + parser.finish())


@each_case
def test_text_reads_as_expected_cut_anywhere(case: Case) -> None:
    expected = list(case.expected if case.by_text is None else case.by_text)
    text = case.text
    assert read_text(text) == expected
    assert read_text(*text) == expected
    for position in range(len(text)):
        assert read_text(text[:position], text[position:]) == expected, position


@each_case
def test_ids_read_as_expected_cut_anywhere(case: Case, tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, case.pieces)
    expected = list(case.expected)
    assert read_ids(tokenizer, ids) == expected
    assert read_ids(tokenizer, *([token_id] for token_id in ids)) == expected
    for position in range(len(ids)):
        assert read_ids(tokenizer, ids[:position], ids[position:]) == expected, position


# Answers that no model was asked for: markers, quotes, brackets and letters in any order.
shards = st.sampled_from([
    *Marker, *(marker.value for marker in Marker), "functions.f:0", "g", '"', "{", "}", ":", ",", "[", "]", "\\",
    '{"a": "', '": 1}', "{}", " ", "\n", "<|", "<|tool_call", "é", "🏔️", "7", "x y", "[EO", "<|im_user|>",
])  # fmt: skip
answers = st.lists(shards, max_size=24)


@given(pieces=answers, data=st.data())
def test_any_text_reads_the_same_in_any_pieces(pieces: list[str | Marker], data: st.DataObject) -> None:
    text = spelled(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read_text(*parts) == read_text(text) == read_text(*text)


@given(pieces=answers, data=st.data())
def test_any_ids_read_the_same_in_any_pieces(
    tokenizer: Tokenizer, pieces: list[str | Marker], data: st.DataObject
) -> None:
    ids = ids_of(tokenizer, pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    parts = [ids[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert read_ids(tokenizer, *parts) == read_ids(tokenizer, ids)


@given(pieces=answers)
def test_no_content_read_from_text_holds_a_marker(pieces: list[str | Marker]) -> None:
    parser = TextParser()
    events = [event for character in spelled(pieces) for event in parser.feed(character)] + parser.finish()
    content = [event.text for event in events if isinstance(event, Text)]
    assert not any(marker.value in text for text in content for marker in Marker)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a"\\{}[]<|é') | st.characters(codec="utf-8"))
    | st.sampled_from([marker.value for marker in Marker] + [f"{CE}{CB}functions.f:0{AB}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
names = st.from_regex(r"\$?[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}", fullmatch=True)
calls = st.lists(st.tuples(names, st.dictionaries(st.text(max_size=6), json_values, max_size=3)), max_size=3)


@given(content=st.text(st.characters(codec="utf-8", exclude_characters="<[")), calls=calls, spaced=st.booleans())
def test_what_is_written_by_the_format_is_read_back_by_text_and_by_ids(
    tokenizer: Tokenizer, content: str, calls: list[tuple[str, dict[str, object]]], spaced: bool
) -> None:
    pieces: list[str | Marker] = [content]
    expected: list[Item] = [content] if content else []
    if calls:
        pieces.append(Marker.SECTION_BEGIN)
        for index, (name, value) in enumerate(calls):
            raw_id = f"functions.{name}:{index}"
            arguments = json.dumps(value, ensure_ascii=False, indent=1 if spaced else None)
            pieces += [Marker.CALL_BEGIN, raw_id, Marker.ARGUMENT_BEGIN, arguments, Marker.CALL_END]
            expected.append(Called(raw_id, name, arguments))
        pieces.append(Marker.SECTION_END)
    pieces.append(Marker.IM_END)
    text = spelled(pieces)
    assert read_text(text) == read_text(*text) == expected
    assert read_ids(tokenizer, ids_of(tokenizer, pieces)) == expected


def test_nothing_is_held_back_but_what_may_begin_a_marker() -> None:
    parser = TextParser()
    told = "".join(
        event.text for piece in ("a<", "b<|tool", "s [") for event in parser.feed(piece) if isinstance(event, Text)
    )
    assert told == "a<b<|tools "
    assert parser.num_held == 1


@each_case
def test_held_text_is_shorter_than_the_longest_marker(case: Case) -> None:
    parser = TextParser()
    for character in case.text:
        parser.feed(character)
        assert parser.num_held < LONGEST_MARKER


def test_arguments_leave_at_once() -> None:
    parser = TextParser()
    parser.feed(f"{CB}f{AB}")
    for character in '{"a": "it < that", "b": [1, 2]}':
        told = "".join(event.text for event in parser.feed(character) if isinstance(event, CallArguments))
        assert len(told) + parser.num_held >= 1


class CountedWork(JsonPrefix):
    """Counts the characters that every follower of JSON is given."""

    given = 0

    def feed(self, text: str) -> int:
        CountedWork.given += len(text)
        return super().feed(text)


@pytest.mark.parametrize("chunk_chars", [1, 7, 10**7])
@pytest.mark.parametrize("quoted", ["", CE, f"{CE}{CB}functions.g:0{AB}"], ids=["plain", "marker", "call"])
def test_a_megabyte_of_arguments_is_read_once(monkeypatch: pytest.MonkeyPatch, chunk_chars: int, quoted: str) -> None:
    monkeypatch.setattr("chogori.chat.tool_call_parser.JsonPrefix", CountedWork)
    monkeypatch.setattr(CountedWork, "given", 0)
    entry = '{"a": "some text \\" é", "b": [1, 2.5]}' + f', "{quoted}", '
    arguments = "[" + entry * ((10**6 if chunk_chars > 1 else 2 * 10**5) // len(entry)) + "0]"
    text = f"{CB}f{AB}{arguments}{CE}"
    parts = [text[start : start + chunk_chars] for start in range(0, len(text), chunk_chars)]
    assert read_text(*parts) == [Called("f", "f", arguments)]
    assert CountedWork.given == len(arguments)


@pytest.mark.parametrize("chunk_chars", [3, 10**7])
def test_a_thousand_open_strings_are_read_twice_at_most(monkeypatch: pytest.MonkeyPatch, chunk_chars: int) -> None:
    monkeypatch.setattr("chogori.chat.tool_call_parser.JsonPrefix", CountedWork)
    monkeypatch.setattr(CountedWork, "given", 0)
    text = f'{CB}f{AB}{{"a": "b{CE}' * 1000
    items = read_text(*(text[start : start + chunk_chars] for start in range(0, len(text), chunk_chars)))
    assert len(items) == 1000
    assert CountedWork.given <= 2 * len(text)


def test_a_token_that_ends_within_a_character_says_nothing_yet(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.ranks[bytes([byte])] for byte in "é🏔".encode()]
    parser = TokenParser(tokenizer)
    told = [[event.text for event in parser.feed([token_id]) if isinstance(event, Text)] for token_id in ids]
    assert told == [[], ["é"], [], [], [], ["🏔"]]
    parser.feed(ids[:1])
    assert parser.finish() == [Text(text="\ufffd")]


def test_half_a_character_before_a_marker_is_replaced(tokenizer: Tokenizer) -> None:
    half = tokenizer.ranks[b"\xf0"]
    ids = [half, *ids_of(tokenizer, [Marker.CALL_BEGIN, "f", Marker.ARGUMENT_BEGIN, '"']), half]
    assert read_ids(tokenizer, ids, [tokenizer.id_of(CE)]) == ["\ufffd", Called("f", "f", '"\ufffd')]


def test_other_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    others = [tokenizer.id_of(name) for name in K2_OFFSETS if name not in {marker.value for marker in Marker}]
    assert len(others) == 10
    assert read_ids(tokenizer, [*tokenizer.encode("a"), *others, *tokenizer.encode("b")]) == ["ab"]


def test_the_end_is_told() -> None:
    parser = TextParser()
    parser.feed("a<|im_end|")
    assert not parser.ended
    parser.feed(">")
    assert parser.ended


def test_an_incomplete_call_tells_what_is_known() -> None:
    parser = TextParser()
    parser.feed(f"{CB}f{AB}{{}}{CE}{CB}functions.get:1{AB}" + '{"a"')
    assert parser.finish() == [
        IncompleteCall(
            index=1,
            header="functions.get:1",
            name="get",
            arguments='{"a"',
            broken_in="arguments",
            broken_by=None,
        )
    ]


@pytest.mark.parametrize(
    ("raw_id", "expected"),
    [
        ("functions.get_weather:0", CallName("get_weather", 0)),
        ("functions.get_weather", CallName("get_weather", None)),
        ("get_weather:12", CallName("get_weather", 12)),
        ("get_weather", CallName("get_weather", None)),
        (" functions.a.b-c:3\n", CallName("a.b-c", 3)),
        ("functions.functions.f:0", CallName("functions.f", 0)),
        ("functions:2", CallName("functions", 2)),
        ("functions.mcp:tool:4", CallName("mcp:tool", 4)),
        ("functions.f:", CallName("f", None)),
        ("functions.$web_search:1", CallName("$web_search", 1)),
        ("call_abc123", CallName("call_abc123", None)),
        ("f:" + "9" * 5000, CallName("f:" + "9" * 5000, None)),
        ("f:٣", CallName("f:٣", None)),
        ("", CallName("", None)),
        ("functions.:7", CallName("", 7)),
        ('f{"a"', CallName("", None)),
        ("two words:1", CallName("", 1)),
    ],
)
def test_names_are_read_from_ids(raw_id: str, expected: CallName) -> None:
    assert name_of(raw_id) == expected


def test_the_cases_cover_what_other_parsers_miss() -> None:
    assert len(CASES) >= 41
    assert len({case.name for case in CASES}) == len(CASES)
    assert any(isinstance(item, Broke) for case in CASES for item in case.expected)
