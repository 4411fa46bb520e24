"""What `--model` may name, and what of it is refused before weights are loaded."""

import asyncio
from pathlib import Path

import pytest

from chogori.chat.completer import ChatRequest, Sampling, complete
from chogori.chat.language_samples import SAMPLES
from chogori.chat.messages import Message
from chogori.chat.tokenizer import Tokenizer
from chogori.cli.local_model import LocalBackend, ModelName
from chogori.engine.config import EngineConfig
from chogori.errors import BackendError, ConfigError, RunError
from chogori.model import K2Config, K2Model

HELLO = ChatRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=6, seed=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    path = tmp_path_factory.mktemp("models") / "small"
    K2Model(K2Config.preset("tiny"), seed=3).save_pretrained(path)
    Tokenizer.train(SAMPLES.values(), vocab_size=300).save(path)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "there is no such folder; expected a run"),
        ("tiny:rondom", r"did you mean 'tiny:random'"),
        ("tini:random", r"no preset is named 'tini'; did you mean 'tiny'"),
        ("kimi-k2:random", r"has 1,026,408,209,408 parameters; expected at most 20,000,000,000"),
    ],
)
def test_what_is_not_a_model_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelName.parse(text)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no config"):
        ModelName.parse(str(tmp_path)).sizes(None)


def test_random_weights_may_be_read_further_than_trained_ones(folder: Path) -> None:
    assert ModelName.parse("tiny:random").sizes(100_000).max_position_embeddings == 100_000
    assert ModelName.parse(str(folder)).sizes(100).max_position_embeddings == 100
    with pytest.raises(ConfigError, match="context_length is 100000; the model was made for 512 tokens"):
        ModelName.parse(str(folder)).sizes(100_000)


def answer_of(text: str) -> tuple[str, str, int]:
    """Name, answer and prompt length of a model that is started and stopped."""
    name = ModelName.parse(text)
    backend = LocalBackend(name, name.sizes(None), EngineConfig(cache_tokens=2_048, num_threads=1))

    async def ask() -> tuple[str, str, int]:
        with pytest.raises(BackendError, match="not loaded yet"):
            assert backend.completer
        await backend.start()
        try:
            completion = await complete(backend.completer, HELLO)
            assert backend.count_tokens(HELLO) == completion.usage.prompt_tokens
            assert backend.gauges().cache_tokens_total == 2_048
        finally:
            await backend.stop()
        return backend.models[0].id, completion.choices[0].message.content, completion.usage.prompt_tokens

    return asyncio.run(ask())


def test_a_folder_and_random_weights_answer(folder: Path) -> None:
    name, text, prompt_tokens = answer_of(str(folder))
    assert (name, text) == ("small", answer_of(str(folder))[1])
    assert text
    assert prompt_tokens > 50
    assert answer_of("tiny:random")[0] == "tiny"
