"""Recipes: whole training runs as frozen configs, from a test's few seconds to Kimi K2's 15.5 T tokens.

Owns the numbers of each run and where they come from; never any behaviour. `RECIPES` is the list that the command line
offers. Read `nano` first, then `kimi_k2`. Loads no torch.
"""

from collections.abc import Callable, Mapping

from chogori.recipes.kimi_k2 import kimi_k2
from chogori.recipes.moonlight import moonlight_16b_a3b
from chogori.recipes.nano import nano
from chogori.recipes.tiny import tiny
from chogori.train.config import TrainConfig

RECIPES: Mapping[str, Callable[[], TrainConfig]] = {
    "nano": nano,
    "tiny": tiny,
    "moonlight-16b-a3b": moonlight_16b_a3b,
    "kimi-k2": kimi_k2,
}
"""Every recipe by the name that the command line gives it."""

__all__ = ["RECIPES", "kimi_k2", "moonlight_16b_a3b", "nano", "tiny"]
