"""Streaming by the real `datasets` library, from a local folder: no network."""

import json
from itertools import islice
from pathlib import Path

import pytest

from chogori.data import DataConfig, prepare
from chogori.data.document import Document
from chogori.data.hugging_face import stream_dataset
from chogori.errors import CorpusError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for split in ("train", "test"):
        lines = [json.dumps({"story": f"{split} story {n}: " + "word " * n, "n": n}) for n in range(40)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def test_streams_a_split(dataset: Path) -> None:
    documents = list(islice(stream_dataset(str(dataset), text_field="story"), 2))
    assert documents == [
        Document(f"{dataset}#1", "train story 0: "),
        Document(f"{dataset}#2", "train story 1: word "),
    ]
    (first,) = islice(stream_dataset(f"{dataset}::test", text_field="story"), 1)
    assert first.text == "test story 0: "


def test_prepares_a_dataset_up_to_its_limit(dataset: Path, tmp_path: Path) -> None:
    config = DataConfig(
        dataset=str(dataset), text_field="story", max_bytes=2000, stdlib=False, vocab_size=300, heldout_share=0.2
    )
    data = prepare(config, tmp_path)
    assert data.manifest.truncated
    assert data.manifest.bytes_read == 2000


def test_what_cannot_be_streamed_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"row 1: found fields story, n; expected text in 'text'"):
        next(stream_dataset(str(dataset), text_field="text"))
    with pytest.raises(CorpusError, match=r"cannot be read: .*split.*name\[:config\]\[:split\]"):
        next(stream_dataset(f"{dataset}::validation", text_field="story"))
    with pytest.raises(CorpusError, match=r"dataset '.*nowhere' cannot be read"):
        next(stream_dataset(str(tmp_path / "nowhere"), text_field="story"))
