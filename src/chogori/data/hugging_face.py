"""Documents of a Hugging Face dataset, streamed by name: nothing is downloaded beyond what is read."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from chogori.data.document import Document
from chogori.data.records import text_of_record
from chogori.errors import CorpusError


def stream_dataset(spec: str, *, text_field: str) -> Iterator[Document]:
    """Stream `name[:config][:split]` (split `train` unless given); `name` may be a local folder of data files.

    Raises CorpusError when `datasets` is not installed, the dataset cannot be opened, or it has no such field.
    """
    try:
        datasets = cast(Any, importlib.import_module("datasets"))  # optional and heavy: only streamed corpora need it
    except ImportError as error:
        raise CorpusError(
            f"data.dataset is {spec!r}; install the reader of such datasets: pip install 'chogori[datasets]'"
        ) from error
    name, _, rest = spec.partition(":")
    config, _, split = rest.partition(":")
    split = split or "train"
    try:
        rows: Iterable[Mapping[str, object]] = datasets.load_dataset(name, config or None, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            text = text_of_record(row, text_field, f"dataset {spec!r}, row {number}")
            yield Document(f"{spec}#{number}", text)
    except (OSError, ValueError, RuntimeError) as error:
        # FileNotFoundError, ConnectionError and DatasetNotFoundError are OSErrors; an unknown config or split a
        # ValueError; a dead connection in mid-stream an OSError or, from the HTTP client, a RuntimeError.
        raise CorpusError(
            f"dataset {spec!r} cannot be read: {error}. Expected name[:config][:split] of a dataset on the Hugging "
            "Face Hub that this machine can reach, or a local folder of data files."
        ) from error
