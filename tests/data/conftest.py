"""A small folder of real text, and the same prepared once for all tests that only read it."""

import shutil
from pathlib import Path

import pytest

from chogori.data import DataConfig, PreparedData, prepare
from chogori.data.standard_library import standard_library_root


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some packages of the standard library: 27 files of code, 500 kB."""
    folder = tmp_path_factory.mktemp("corpus") / "library"
    for package in ("json", "logging", "urllib", "html"):
        source = standard_library_root() / package
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def small_config(folder: Path, **changes: object) -> DataConfig:
    settings: dict[str, object] = {"paths": (folder,), "stdlib": False, "vocab_size": 600, "heldout_share": 0.2}
    return DataConfig(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> PreparedData:
    """Prepared with shards so small that there are several."""
    config = small_config(text_folder, shard_tokens=40_000)
    return prepare(config, tmp_path_factory.mktemp("prepared"))
