"""How fast text becomes shards and shards become batches: prepare(), the tokenizer and PackedLoader.

Writes benchmarks/results/data_loading.json, tokenizer.json and data_preparation.json. The peers: `tokenizers` encoding
with the same vocabulary (and the same ids, which is checked), and the usual minimal loader, random windows of one
memory-mapped array, which knows no documents, repeats and skips tokens, and cannot resume.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers

from chogori.data import DataConfig, PackedLoader, PreparedData, prepare

COMMAND = "python benchmarks/bench_data_loading.py"
RESULTS = Path(__file__).parent / "results"
BATCH_SIZE, SEQUENCE_LENGTH, NUM_BATCHES, NUM_SAMPLES = 8, 512, 300, 5
STEP_S = 0.4  # a training step on 8 × 512 tokens at 10,000 tokens a second, what the nano model reaches on two cores


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data, stages = measure_preparation(Path(folder))
        loading = interleaved({"ours": lambda: load_ours(data), "windows": lambda: load_windows(data)})
        encoding = measure_encoding(data, Path(folder))
        waited = measure_waiting(data)
    manifest = data.manifest
    share = manifest.heldout.bytes / manifest.bytes_read
    write(
        "data_preparation",
        f"prepare() on the default corpus: {manifest.documents_read} documents, {manifest.bytes_read / 1e6:.1f} MB, "
        f"vocabulary of {manifest.vocab_size:,}",
        "s",
        [{"name": name, "ours": True, "median": seconds} for name, seconds in stages.items()],
        f"{manifest.train.tokens:,} training tokens, {share:.1%} of the bytes held out; one run.",
    )
    ours, theirs = loading["ours"], loading["windows"]
    write(
        "data_loading",
        f"Batches of {BATCH_SIZE} × {SEQUENCE_LENGTH} tokens from memory-mapped shards",
        "tokens/s",
        [
            row("PackedLoader", ours, ours=True),
            row("random windows of one array", theirs, ratio=statistics.median(ours) / statistics.median(theirs)),
        ],
        f"A loop that takes a batch every {STEP_S} s, as training does at 10,000 tokens/s, waited "
        f"{waited:.3%} of the time.",
    )
    ours, theirs = encoding["ours"], encoding["tokenizers"]
    write(
        "tokenizer",
        f"Encoding the standard library with the same vocabulary of {manifest.vocab_size:,}, all cores, equal ids",
        "MB/s",
        [
            row("Tokenizer.encode_batch", ours, ours=True),
            row("tokenizers encode_batch", theirs, ratio=statistics.median(ours) / statistics.median(theirs)),
        ],
        None,
    )


def measure_preparation(folder: Path) -> tuple[PreparedData, dict[str, float]]:
    """The default corpus prepared once; seconds from the first report of each stage to that of the next."""
    marks: dict[str, float] = {}

    def mark(stage: str, _share: float) -> None:
        marks.setdefault(stage, time.perf_counter())

    start = time.perf_counter()
    data = prepare(DataConfig(), folder / "data", progress=mark)
    end = time.perf_counter()
    times = [start, *list(marks.values())[1:], end]
    stages = {stage: times[n + 1] - times[n] for n, stage in enumerate(marks)}
    return data, {**stages, "all": end - start}


def load_ours(data: PreparedData) -> float:
    """Tokens per second, the first batch included."""
    with PackedLoader(data.train, batch_size=BATCH_SIZE, sequence_length=SEQUENCE_LENGTH, seed=0) as loader:
        start = time.perf_counter()
        num_targets = sum(loader.next_batch().num_targets for _ in range(NUM_BATCHES))
        return num_targets / (time.perf_counter() - start)


def load_windows(data: PreparedData) -> float:
    """The minimal loader on the same tokens."""
    tokens = np.memmap(data.folder / data.manifest.train_shards[0], dtype=np.uint16, mode="r")
    generator = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(NUM_BATCHES):
        places = generator.integers(0, len(tokens) - SEQUENCE_LENGTH - 1, BATCH_SIZE)
        np.stack([tokens[place : place + SEQUENCE_LENGTH].astype(np.int64) for place in places])
        np.stack([tokens[place + 1 : place + 1 + SEQUENCE_LENGTH].astype(np.int64) for place in places])
    return NUM_BATCHES * BATCH_SIZE * SEQUENCE_LENGTH / (time.perf_counter() - start)


def measure_waiting(data: PreparedData) -> float:
    """Share of time that a loop as slow as training spends waiting for batches, the first one apart."""
    with PackedLoader(data.train, batch_size=BATCH_SIZE, sequence_length=SEQUENCE_LENGTH, seed=0) as loader:
        loader.next_batch()
        first, start = loader.wait_s, time.perf_counter()
        for _ in range(20):
            time.sleep(STEP_S)
            loader.next_batch()
        return (loader.wait_s - first) / (time.perf_counter() - start)


def measure_encoding(data: PreparedData, folder: Path) -> dict[str, list[float]]:
    """Megabytes per second of the training text, by us and by `tokenizers`."""
    texts = [
        data.tokenizer.decode(data.train.document(number)[1:-1].tolist()) for number in range(data.train.num_documents)
    ]
    theirs = tokenizers.Tokenizer.from_file(str(data.folder / "tokenizer" / "tokenizer.json"))
    # One file spells markers out; `tokenizers` would make special tokens of them, we do not.
    texts = [text for text in texts if not any(name in text for name in data.tokenizer.special_tokens)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ids = [encoding.ids for encoding in theirs.encode_batch_fast(texts, add_special_tokens=False)]
    assert ids == data.tokenizer.encode_batch(texts), "both must give the same ids"

    def speed(encode: Callable[[], object]) -> float:
        start = time.perf_counter()
        encode()
        return megabytes / (time.perf_counter() - start)

    return interleaved(
        {
            "ours": lambda: speed(lambda: data.tokenizer.encode_batch(texts)),
            "tokenizers": lambda: speed(
                lambda: [encoding.ids for encoding in theirs.encode_batch_fast(texts, add_special_tokens=False)]
            ),
        }
    )


def interleaved(subjects: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Samples of each subject, taken in turns after one that is thrown away."""
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(NUM_SAMPLES + 1):
        for name, measure in subjects.items():
            value = measure()
            if turn:
                samples[name].append(value)
    return samples


def row(name: str, samples: list[float], *, ours: bool = False, ratio: float | None = None) -> dict[str, object]:
    entry: dict[str, object] = {"name": name, "ours": ours}
    entry |= {"median": statistics.median(samples), "low": min(samples), "high": max(samples)}
    return entry if ratio is None else entry | {"ratio": ratio}


def write(name: str, title: str, unit: str, rows: list[dict[str, object]], note: str | None) -> None:
    result: dict[str, object] = {
        "title": title,
        "command": COMMAND,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "unit": unit,
        "rows": rows,
    }
    if note is not None:
        result["note"] = note
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(title)
    for entry in rows:
        ratio = f"   ours is {entry['ratio']:.2f} times better" if "ratio" in entry else ""
        print(f"  {entry['name']:<48} {entry['median']:>14,.2f} {unit}{ratio}")
    if note is not None:
        print(f"  {note}")


if __name__ == "__main__":
    main()
