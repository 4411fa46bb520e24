"""The latent cache of decoding: 576 numbers per token and layer in K2 instead of 64 full heads.

Shapes: L layers, B batch, S cached tokens, W latent and rotary key side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chogori.errors import ConfigError
from chogori.model.config import K2Config


class LatentCache:
    """A contiguous latent cache for one batch whose rows have equal length.

    Args:
        config: the model's sizes.
        batch_size: rows B.
        max_tokens: capacity S; at most `config.max_position_embeddings`.
    """

    def __init__(
        self,
        config: K2Config,
        batch_size: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 1 <= max_tokens <= config.max_position_embeddings:
            raise ConfigError(
                f"a cache of {max_tokens} tokens was asked for; expected 1 to model.max_position_embeddings = "
                f"{config.max_position_embeddings}"
            )
        width = config.cache_numbers_per_token_and_layer
        self.latents_LBSW = torch.zeros(config.num_layers, batch_size, max_tokens, width, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_tokens(self) -> int:
        """Capacity in tokens."""
        return self.latents_LBSW.shape[2]

    def extend(self, layer: int, latent_BTW: Tensor) -> Tensor:
        """Store the new tokens' latents of one layer; returns all of that layer's so far, [B, length + T, W].

        `length` itself moves once per forward, by `advance`, after every layer has stored its part.
        """
        stop = self.length + latent_BTW.shape[1]
        if stop > self.max_tokens:
            raise ConfigError(
                f"the cache holds {self.max_tokens} tokens and {stop} are needed; make it larger or start a new one"
            )
        self.latents_LBSW[layer, :, self.length : stop] = latent_BTW
        return self.latents_LBSW[layer, :, :stop]

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` more as cached."""
        self.length += num_tokens
