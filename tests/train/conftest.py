"""A corpus of invented sentences, prepared once, and a model that trains on it in milliseconds a step."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from chogori.data.config import DataConfig
from chogori.model.config import K2Config
from chogori.optim.config import MuonClipConfig
from chogori.train.config import ScheduleConfig, TrainConfig

_WORDS = (
    "mountain camp rope snow wind cloud ridge climber porter notebook summit night morning river stone bridge "
    "measures carries writes waits returns falls opens reads counts follows the a one each every old quiet"
).split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of random sentences, too different from each other to be duplicates."""
    folder = tmp_path_factory.mktemp("corpus")
    source = random.Random(1)
    for number in range(40):
        sentences = [" ".join(source.choices(_WORDS, k=source.randint(4, 12))).capitalize() + "." for _ in range(25)]
        (folder / f"{number:02d}.txt").write_text(" ".join(sentences), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of all tests share the prepared corpus."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def make_config(corpus: Path, data_folder: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A config of the tiny model on the invented corpus; keyword arguments change its fields."""

    def make(**changes: object) -> TrainConfig:
        config = TrainConfig(
            model=K2Config.preset("tiny"),
            optim=MuonClipConfig(lr=5e-3),
            data=DataConfig(paths=(corpus,), stdlib=False, vocab_size=300, heldout_share=0.1),
            schedule=ScheduleConfig(warmup_steps=2),
            out=tmp_path / "run",
            data_folder=data_folder,
            sequence_length=32,
            batch_size=2,
            steps=6,
            eval_interval=3,
            eval_bytes=500,
            checkpoint_interval=3,
            sample_prompts=(),
            device="cpu",
            compile="never",
        )
        return config.replace(**changes)

    return make
