"""What the tests of the engine share: a small vocabulary, a tiny model, an engine that is stopped."""

from collections.abc import Callable, Iterator

import pytest
import torch

from chogori.chat import SAMPLES, Tokenizer
from chogori.engine.config import EngineConfig
from chogori.engine.engine import Engine
from chogori.engine.forward import ServedModel
from chogori.engine.vocabulary import Vocabulary
from chogori.model import K2Config, K2Model
from tests.engine.running import scatter

# Models this small gain nothing from threads, and lose much where other work shares the cores.
torch.set_num_threads(1)

JSON_TEXT = '{"name": "Ana", "tags": ["a", "b"], "size": 10.5, "open": true, "none": null, "in": {"x": [[1, 2], {}]}}\n'
TINY = K2Config.preset("tiny").replace(vocab_size=520)
"""More rows than the tokenizer has ids, as in every model whose vocabulary is padded."""


@pytest.fixture(scope="module", params=(1, 2), ids=("one thread", "two threads"))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The test runs with each number of PyTorch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """With merges over JSON's punctuation, so that one token opens or closes several things."""
    return Tokenizer.train([*SAMPLES.values(), JSON_TEXT * 20], vocab_size=500)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer, TINY.vocab_size)


@pytest.fixture(scope="session")
def served() -> ServedModel:
    """A tiny model in float32."""
    return ServedModel(scatter(K2Model(TINY, seed=0)))


@pytest.fixture
def make_engine(served: ServedModel, vocabulary: Vocabulary) -> Iterator[Callable[..., Engine]]:
    """`make_engine(**changes of EngineConfig)`: a started engine; all are stopped at the end."""
    engines: list[Engine] = []

    def make(model: ServedModel = served, **changes: object) -> Engine:
        settings: dict[str, object] = {"cache_tokens": 4096, "prefill_chunk_tokens": 32, "step_tokens": 64}
        config = EngineConfig(**{**settings, "num_threads": 1, **changes})  # pyright: ignore[reportArgumentType]
        engine = Engine(model, vocabulary.end_ids, config)
        engines.append(engine)
        engine.start()
        return engine

    yield make
    for engine in engines:
        engine.stop()
