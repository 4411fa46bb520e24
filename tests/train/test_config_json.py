"""Configs survive JSON exactly."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chogori.errors import ConfigError
from chogori.model.config import PRESETS, K2Config
from chogori.optim.config import MuonClipConfig
from chogori.train.config import TrainConfig
from chogori.train.config_json import differing_fields, from_json, to_json


def through_json(value):
    return json.loads(json.dumps(to_json(value)))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_round_trip(name):
    config = K2Config.preset(name)
    assert from_json(K2Config, through_json(config)) == config


def test_a_run_round_trips(make_config):
    config = make_config(steps=None, tokens=123_456, grad_clip_norm=None, threads=3, out=Path("runs/日本"))
    restored = from_json(TrainConfig, through_json(config))
    assert restored == config
    assert isinstance(restored.data.paths[0], Path)
    assert isinstance(restored.optim.betas, tuple)


@given(lr=st.floats(0, 0.99), beta=st.floats(0, 0.999), eps=st.floats(1e-300, 1))
def test_floats_keep_every_bit(lr, beta, eps):
    config = MuonClipConfig(lr=lr, betas=(beta, beta), eps=eps)
    assert from_json(MuonClipConfig, through_json(config)) == config


@dataclass(frozen=True)
class Left:
    size: int = 1


@dataclass(frozen=True)
class Right:
    size: int = 1


@dataclass(frozen=True)
class Either:
    part: Left | Right | None
    number: float | int = 1


@pytest.mark.parametrize("value", [Either(Left(2)), Either(Right(2)), Either(None, 2), Either(None, 2.0)])
def test_unions_keep_their_member(value):
    restored = from_json(Either, through_json(value))
    assert restored == value
    assert type(restored.part) is type(value.part)
    assert type(restored.number) is type(value.number)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stepz": 3}, "config has the unknown field 'stepz'; TrainConfig has"),
        ({"batch_size": "8"}, "config.batch_size is '8'; expected int"),
        ({"batch_size": True}, "config.batch_size is True; expected int"),
        ({"precision": "int8"}, "config.precision is 'int8'; expected one of 'auto'"),
        ({"sample_prompts": "def"}, "config.sample_prompts is 'def'; expected a list"),
        ({"model": 3}, "config.model is 3; expected the fields of K2Config"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
    ],
)
def test_refusals_name_the_place(make_config, change, words):
    record = through_json(make_config()) | change
    with pytest.raises(ConfigError, match=words):
        from_json(TrainConfig, record)


def test_an_absent_field_takes_its_default(make_config):
    record = through_json(make_config())
    del record["batch_size"], record["model"]["rope_theta"]
    restored = from_json(TrainConfig, record)
    assert (restored.batch_size, restored.model.rope_theta) == (8, 50_000.0)


def test_differences_are_named_with_both_values(make_config):
    old = make_config()
    new = old.replace(batch_size=4, model=old.model.replace(num_heads=2))
    found = differing_fields(to_json(old), to_json(new))
    assert found == [("model.num_heads", 4, 2), ("batch_size", 2, 4)]
