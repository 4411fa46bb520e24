"""Configurations that cannot be are refused at construction, naming the field."""

import pytest

from chogori.data import DataConfig
from chogori.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stdlib": False}, r"names no text.*data\.paths or leave data\.stdlib on"),
        ({"dataset": "x/y"}, r"'x/y' without a limit.*data\.max_bytes=100000000"),
        ({"heldout_share": 0.0}, r"data\.heldout_share is 0\.0; expected between 0 and 1"),
        ({"heldout_share": 1.0}, r"data\.heldout_share is 1\.0"),
        ({"near_duplicates": 0.5}, r"data\.near_duplicates is 0\.5; expected 0\.7 to 1"),
        ({"vocab_size": 0}, r"data\.vocab_size is 0; expected at least 1"),
        ({"max_bytes": 0}, r"data\.max_bytes is 0"),
        ({"text_field": ""}, r"data\.text_field is empty"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**changes)  # pyright: ignore[reportArgumentType]
