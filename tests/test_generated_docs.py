"""The generator of docs/: tables from result files, and what it says of a page that has drifted."""

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
PAGE = "# Benchmarks\n\n<!-- results: optimizer -->\nold\n<!-- end -->\n"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(generate_docs, "ROOT", tmp_path)
    monkeypatch.setattr(generate_docs, "RESULTS", tmp_path)
    return tmp_path


def test_table(results: Path) -> None:
    (results / "optimizer.json").write_text(json.dumps(RESULT), encoding="utf-8")
    page = generate_docs.benchmarks_page(PAGE)
    assert (
        page
        == """# Benchmarks

<!-- results: optimizer -->
| Optimizer step | ms | spread | ours against it |
|---|---:|---:|---:|
| **MuonClip** | 40 | 39 to 42 |  |
| torch.optim.Muon | 1,248 |  | 3.00× |

two cores, 2026-01-31. `python benchmarks/bench_optimizer.py`. Quiet samples only.
<!-- end -->
"""
    )
    assert generate_docs.benchmarks_page(page) == page


def test_page_shows_a_result_that_is_not_there(results: Path) -> None:
    with pytest.raises(
        generate_docs.StaleError, match=r"shows optimizer, but optimizer\.json does not exist; run make"
    ):
        generate_docs.benchmarks_page(PAGE)


def test_result_that_no_page_shows(results: Path) -> None:
    (results / "optimizer.json").write_text(json.dumps(RESULT), encoding="utf-8")
    with pytest.raises(generate_docs.StaleError, match="does not show optimizer"):
        generate_docs.benchmarks_page("# Benchmarks\n")
