"""Text to batches: corpora, deduplication, the held-out split, token shards, packing, resumable loaders.

Owns everything between files of text and arrays of tokens; knows no model and never loads torch. Read `preparation`,
which calls the rest in order, then `packing` and `loader`.
"""

from typing import TYPE_CHECKING

from chogori._lazy import lazy_exports

if TYPE_CHECKING:
    from chogori.data.config import DataConfig
    from chogori.data.loader import PackedLoader, heldout_batches
    from chogori.data.manifest import Manifest
    from chogori.data.packing import IGNORE_INDEX, Batch
    from chogori.data.preparation import PreparedData, open_prepared, prepare
    from chogori.data.shards import ShardSet

__all__ = [
    "DataConfig",
    "prepare",
    "open_prepared",
    "PreparedData",
    "Manifest",
    "ShardSet",
    "Batch",
    "IGNORE_INDEX",
    "PackedLoader",
    "heldout_batches",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DataConfig": "config",
        "PackedLoader": "loader",
        "heldout_batches": "loader",
        "Manifest": "manifest",
        "IGNORE_INDEX": "packing",
        "Batch": "packing",
        "PreparedData": "preparation",
        "open_prepared": "preparation",
        "prepare": "preparation",
        "ShardSet": "shards",
    },
)
