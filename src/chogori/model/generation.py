"""Sampling from a model, token by token, over the latent cache: prefill once, then one absorbed step per token.

Shapes: B batch, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from chogori.errors import ConfigError
from chogori.model.cache import LatentCache
from chogori.model.transformer import K2Model


def generate(
    model: K2Model,
    tokens_BT: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop_ids: Collection[int] = (),
) -> Iterator[Tensor]:
    """Continue prompts of equal length, yielding each step's token of every row (int64 [B], on the prompt's device).

    Args:
        temperature: 0 takes the most likely token; above 0 divides the logits.
        top_p: sample among the most likely tokens that together have at least this probability.
        top_k: sample among this many of the most likely tokens; applied before `top_p`. None for all.
        generator: source of randomness, on the model's device; torch's default one when None.
        stop_ids: a row that produced one of these repeats it; when all rows have, generation ends.

    The model runs in eval mode and returns to the mode it had. Raises ConfigError for arguments that cannot be, at the
    call rather than at the first token.
    """
    if tokens_BT.ndim != 2 or tokens_BT.shape[0] < 1 or tokens_BT.shape[1] < 1:
        raise ConfigError(f"the prompt has shape {list(tokens_BT.shape)}; expected [batch, tokens], at least [1, 1]")
    if tokens_BT.dtype != torch.int64:
        raise ConfigError(f"the prompt is {tokens_BT.dtype}; expected token ids in torch.int64")
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
    if temperature < 0:
        raise ConfigError(f"temperature is {temperature}; expected 0 (greedy) or above, such as 0.6")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}; expected above 0 and at most 1")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k is {top_k}; expected at least 1, or None for all tokens")
    longest = model.config.max_position_embeddings
    if tokens_BT.shape[1] + max_new_tokens > longest:
        raise ConfigError(
            f"{tokens_BT.shape[1]} prompt tokens and max_new_tokens = {max_new_tokens} exceed "
            f"model.max_position_embeddings = {longest}; shorten the prompt or ask for fewer tokens"
        )
    sampler = _Sampler(temperature=temperature, top_p=top_p, top_k=top_k, generator=generator)
    return _steps(model, tokens_BT, max_new_tokens, sampler, sorted(stop_ids))


def _steps(
    model: K2Model, tokens_BT: Tensor, max_new_tokens: int, sampler: _Sampler, stop_ids: list[int]
) -> Iterator[Tensor]:
    device = model.lm_head.weight.device
    stop_ids_X = torch.tensor(stop_ids, dtype=torch.int64, device=device)
    # The last new token is never fed back.
    max_tokens = tokens_BT.shape[1] + max_new_tokens - 1
    cache = LatentCache(model.config, tokens_BT.shape[0], max_tokens, dtype=model.compute_dtype, device=device)
    input_BT = tokens_BT.to(device)
    stopped_B = torch.zeros(tokens_BT.shape[0], dtype=torch.bool, device=device)
    next_B = input_BT[:, -1]
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            with torch.no_grad():
                logits_BV = model(input_BT, cache=cache)[:, -1]
                next_B = torch.where(stopped_B, next_B, sampler.choose(logits_BV))
                stopped_B = stopped_B | torch.isin(next_B, stop_ids_X)
            yield next_B.to(tokens_BT.device)
            if stop_ids and bool(stopped_B.all()):
                return
            input_BT = next_B[:, None]
    finally:
        model.train(was_training)


class _Sampler:
    """The choice of one token per row from its logits."""

    def __init__(
        self, *, temperature: float, top_p: float, top_k: int | None, generator: torch.Generator | None
    ) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.generator = generator

    def choose(self, logits_BV: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        logits_BV = logits_BV.float() / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            smallest_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, float("-inf"))
        probability_BV = logits_BV.softmax(-1)
        if self.top_p < 1:
            sorted_BV, order_BV = probability_BV.sort(dim=-1, descending=True)
            # A token stays while those before it have not reached top_p, so the most likely one always stays.
            kept_BV = sorted_BV.cumsum(-1) - sorted_BV < self.top_p
            probability_BV = torch.zeros_like(probability_BV).scatter(-1, order_BV, sorted_BV * kept_BV)
        return torch.multinomial(probability_BV, 1, generator=self.generator).squeeze(-1)
