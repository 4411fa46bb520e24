"""Kimi K2's licence: whoever is large enough must show its name where people see the product.

Kimi K2 is under a Modified MIT licence: a product or service that it, or a model made from it, is part of, and that has
more than 100 million monthly active users or more than 20 million USD of monthly revenue, prominently displays
"Kimi K2" on its user interface.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chogori.serve.backend import ModelCard

KIMI_K2 = "Kimi K2"
LICENCE = "Modified MIT (Kimi K2)"
NAME_HEADER = "x-model-display-name"
_ITS_ID = re.compile(r"kimi[-_ .]?k2", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class LicenceSettings:
    """What Kimi K2's licence asks of this operator."""

    kimi_k2_terms: bool = False
    """The product passes 100 million monthly active users or 20 million USD of monthly revenue: where the served model
    is Kimi K2, its name is shown in the lists of models and on every page."""
    model: Literal["detected", "kimi-k2", "other"] = "detected"
    """Whether the served models are Kimi K2 or made from it. "detected" is by their names and sizes, which do not tell
    that a model of another name was made from it."""

    def shows_name_of(self, card: ModelCard) -> bool:
        """Whether a model is to be shown under the name Kimi K2."""
        if not self.kimi_k2_terms or self.model == "other":
            return False
        return self.model == "kimi-k2" or card.has_kimi_k2_sizes or _ITS_ID.search(card.id) is not None

    def shows_name(self, cards: Sequence[ModelCard]) -> bool:
        """Whether pages and lists are to show the name Kimi K2."""
        return any(map(self.shows_name_of, cards))


def name_headers(licence: LicenceSettings, models: Sequence[ModelCard]) -> dict[str, str]:
    """The header that names the model, where its licence asks for that."""
    return {NAME_HEADER: KIMI_K2} if licence.shows_name(models) else {}
