import pytest

from chogori.engine.config import EngineConfig
from chogori.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_running": 0}, "engine.max_running is 0; expected at least 1"),
        ({"step_tokens": 0}, "engine.step_tokens is 0; expected at least 1"),
        ({"cache_tokens": 40}, "engine.cache_tokens is 40; expected a multiple of engine.block_tokens = 16"),
        ({"prefill_chunk_tokens": 40}, "prefill_chunk_tokens is 40; expected a multiple of engine.block_tokens = 16"),
        ({"pinned_share": 1.0}, "engine.pinned_share is 1.0; expected at least 0 and less than 1"),
        ({"num_threads": 0}, "engine.num_threads is 0; expected at least 1, or None"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**changes)  # pyright: ignore[reportArgumentType]
