"""Events as the standard has them, in any pieces."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.chat import server_sent_events
from chogori.chat.server_sent_events import EventReader, ServerSentEvent
from chogori.errors import BackendError


def read(*pieces: bytes) -> list[ServerSentEvent]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\n\ndata:  b\n\n", ["a", " b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
        (b"data: a\r\rdata: b\r\r", ["a", "b"]),
        (b"data: a\ndata: b\r\ndata: c\r\n\n", ["a\nb\nc"]),
        (b"data\n\n", [""]),
        (b"data:\ndata:\n\n", ["\n"]),
        (b": comment\n\ndata: a\n: another\n\n", ["a"]),
        (b"event: x\n\ndata: a\n\n", ["a"]),
        (b"id: 1\nretry: 5\nfoo: bar\ndata: a:b: c\n\n", ["a:b: c"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"\n\n\ndata: a\n\n\n\n", ["a"]),
        (b"data: a\n\ndata: cut", ["a"]),
        (b"data: a\n\ndata: cut\n", ["a"]),
        ("data: é🏔️\u2028\x85\x0b\n\n".encode(), ["é🏔️\u2028\x85\x0b"]),
        (b"data: \xff\n\n", ["\ufffd"]),
        (b" data: a\n\n", []),
        (b"", []),
    ],
)
def test_data_is_read_as_the_standard_says_cut_anywhere(received: bytes, expected: list[str]) -> None:
    assert [event.data for event in read(received)] == expected
    assert read(*(received[i : i + 1] for i in range(len(received)))) == read(received)
    for position in range(len(received)):
        assert read(received[:position], b"", received[position:]) == read(received)


def test_a_type_holds_for_one_event() -> None:
    assert read(b"event: error\ndata: a\n\ndata: b\n\n") == [
        ServerSentEvent(data="a", event="error"),
        ServerSentEvent(data="b", event="message"),
    ]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)


@given(data=st.lists(st.lists(texts, min_size=1, max_size=3), max_size=4), ends=st.randoms(use_true_random=False))
def test_what_is_written_is_read(data: list[list[str]], ends: random.Random) -> None:
    written = b""
    for lines in data:
        for line in lines:
            written += f"data: {line}".encode() + ends.choice([b"\n", b"\r", b"\r\n"])
        # A lone CR before LF would be one line end.
        written += b"\r\n" if written.endswith(b"\r") else ends.choice([b"\n", b"\r\n"])
        written += b": ping\n"
    cut = ends.randint(0, len(written))
    whole = [event.data for event in read(written)]
    assert whole == [event.data for event in read(written[:cut], written[cut:])]


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_sent_events, "MAX_EVENT_BYTES", 100)
    reader = EventReader()
    for _ in range(50):
        assert reader.feed(b": ping, and a comment is no event\n") == []
        assert len(reader.feed(b"data: fifty bytes of text, or so, are few\n\n")) == 1
    for _ in range(25):
        reader.feed(b"data")
    with pytest.raises(BackendError, match="more than 100 bytes"):
        reader.feed(b"data")
