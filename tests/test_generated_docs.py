"""The generator of docs/: tables from result files, drawn again without a change."""

import json
from pathlib import Path

import pytest

from scripts import generate_docs

RESULT = {
    "title": "Optimizer step",
    "command": "python benchmarks/bench_optimizer.py",
    "machine": "two cores",
    "date": "2026-01-31",
    "unit": "ms",
    "rows": [
        {"name": "MuonClip", "ours": True, "median": 40.04, "low": 39.0, "high": 42.0},
        {"name": "torch.optim.Muon", "median": 1248.4, "ratio": 3.0},
    ],
    "note": "Quiet samples only.",
}
PAGE = "# Benchmarks\n\n<!-- results -->\nold\n<!-- end -->\n"


def test_every_result_has_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_docs, "RESULTS", tmp_path)
    (tmp_path / "optimizer.json").write_text(json.dumps(RESULT), encoding="utf-8")
    page = generate_docs.benchmarks_page(PAGE)
    assert (
        page
        == """# Benchmarks

<!-- results -->

## Optimizer step

| | ms | spread | ours against it |
|---|---:|---:|---:|
| **MuonClip** | 40 | 39 to 42 |  |
| torch.optim.Muon | 1,248 |  | 3.00× |

`python benchmarks/bench_optimizer.py` on two cores, 2026-01-31. Quiet samples only.

<!-- end -->
"""
    )
    assert generate_docs.benchmarks_page(page) == page
