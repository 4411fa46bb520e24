"""Counts that stand in for a tokenizer: of all that a request says, and of nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from chogori.chat.completer import ChatRequest, Sampling, TextRequest
from chogori.chat.messages import Message, ToolCall, ToolSpec
from chogori.chat.token_estimate import count_prompt_tokens, num_earlier_calls, tokens_of_four_bytes

CALLS = (ToolCall(id="functions.f:0", name="f", arguments="{}"), ToolCall(id="functions.f:1", name="f", arguments="[]"))
MESSAGES = [Message(role="user", content="hello"), Message(role="assistant", content="ok", tool_calls=CALLS)]


@given(text=st.text(st.characters(codec="utf-8")), more=st.text(st.characters(codec="utf-8"), min_size=1))
def test_four_bytes_are_a_token(text: str, more: str) -> None:
    num_tokens = tokens_of_four_bytes(text)
    assert 0 <= 4 * num_tokens - len(text.encode()) < 4
    assert tokens_of_four_bytes(text + more) >= num_tokens


def test_contents_calls_and_tools_are_counted() -> None:
    tool = ToolSpec(name="f", declaration={"type": "f"})
    request = ChatRequest(messages=MESSAGES, tools=[tool], sampling=Sampling(stop=("not this",)))
    assert count_prompt_tokens(request, len) == len("hello") + len("ok") + len("f{}") + len("f[]") + len(
        '{"type": "f"}'
    )


def test_ids_are_tokens_and_text_is_counted() -> None:
    assert count_prompt_tokens(TextRequest(prompt=[7, 8, 9]), len) == 3
    assert count_prompt_tokens(TextRequest(prompt="hello"), len) == 5


def test_calls_are_counted_over_the_conversation() -> None:
    assert num_earlier_calls(ChatRequest(messages=MESSAGES * 2)) == 4
    assert num_earlier_calls(TextRequest(prompt="")) == 0
