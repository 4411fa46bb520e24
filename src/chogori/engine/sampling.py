"""The choice of one token from its logits. Loads no torch.

Everything about a row depends on that row, the request and the request's own random numbers: what else is in the batch
plays no part.

Shapes: V rows of the model's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chogori.chat.completer import Sampling
from chogori.engine.vocabulary import Mask
from chogori.errors import NonFiniteError

Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihood:
    """How likely the model itself found a token, before penalties, temperature and constraints; nats."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenSampler:
    """Draws the tokens of one answer.

    Args:
        sampling: the request's settings.
        prompt: its token ids, which the repetition penalty counts.
        choice: number of this answer among those to the same prompt; each draws other tokens from one seed.
        num_rows: rows V of the model's head.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], *, choice: int, num_rows: int) -> None:
        self._sampling = sampling
        seed = sampling.seed if sampling.seed is None else [sampling.seed & (2**64 - 1), choice]
        self._generator = np.random.default_rng(seed)
        self._counts_V: NDArray[np.int32] | None = None
        self._seen_V: Mask | None = None
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts_V = np.zeros(num_rows, dtype=np.int32)
        if sampling.repetition_penalty != 1:
            self._seen_V = np.zeros(num_rows, dtype=np.bool_)
            self._seen_V[np.asarray(prompt, dtype=np.int64)] = True
        self._biased = [(token, bias) for token, bias in sampling.logit_bias.items() if 0 <= token < num_rows]

    def choose(self, logits_V: Logits, allowed_V: Mask) -> int:
        """One of the allowed tokens. Raises NonFiniteError where their logits are no numbers."""
        sampling = self._sampling
        scores_V = np.where(allowed_V, self._adjusted(logits_V), np.float32(-np.inf))
        likeliest = int(scores_V.argmax())
        peak = float(scores_V[likeliest])
        if np.isnan(peak) or peak == np.inf:
            raise NonFiniteError(
                f"the likeliest token's logit, with penalties and biases, is {peak}; expected a number"
            )
        if sampling.temperature == 0:
            return likeliest if allowed_V[likeliest] else int(allowed_V.argmax())
        tokens_C = np.flatnonzero(allowed_V)
        scores_C = scores_V[tokens_C].astype(np.float64)
        # Relative to the likeliest, so that no temperature, however small, makes infinities that cannot be compared.
        # Where the model finds all of them impossible they are alike.
        with np.errstate(over="ignore"):
            scores_C = (scores_C - peak) / sampling.temperature if peak > -np.inf else np.zeros_like(scores_C)
        if sampling.top_k is not None and sampling.top_k < scores_C.size:
            kept = np.argpartition(-scores_C, sampling.top_k - 1)[: sampling.top_k]
            tokens_C, scores_C = tokens_C[kept], scores_C[kept]
        # Likeliest first, equals by id, so that the draw does not depend on how the rest was arranged.
        order = np.lexsort((tokens_C, -scores_C))
        tokens_C, scores_C = tokens_C[order], scores_C[order]
        weights_C = np.exp(scores_C)
        if sampling.min_p > 0:
            kept_count = int(np.count_nonzero(weights_C >= sampling.min_p))
            tokens_C, weights_C = tokens_C[:kept_count], weights_C[:kept_count]
        cumulative_C = weights_C.cumsum()
        if sampling.top_p < 1:
            # A token stays while those before it have not reached top_p.
            kept_count = int(np.searchsorted(cumulative_C, sampling.top_p * cumulative_C[-1])) + 1
            cumulative_C = cumulative_C[:kept_count]
        drawn = self._generator.random() * cumulative_C[-1]
        return int(tokens_C[min(int(np.searchsorted(cumulative_C, drawn, side="right")), cumulative_C.size - 1)])

    def note(self, token: int) -> None:
        """Count a token that became part of the answer."""
        if self._counts_V is not None:
            self._counts_V[token] += 1
        if self._seen_V is not None:
            self._seen_V[token] = True

    def likelihood(self, logits_V: Logits, token: int) -> Likelihood:
        """What to report of `token`."""
        logits64_V = logits_V.astype(np.float64)
        peak = logits64_V.max()
        total = peak + np.log(np.exp(logits64_V - peak).sum())
        count = self._sampling.top_logprobs
        top: list[tuple[int, float]] = []
        if count:
            best = np.argpartition(-logits64_V, count - 1)[:count]
            best = best[np.lexsort((best, -logits64_V[best]))]
            top = [(int(i), float(logits64_V[i] - total)) for i in best]
        return Likelihood(logprob=float(logits64_V[token] - total), top=tuple(top))

    def _adjusted(self, logits_V: Logits) -> Logits:
        sampling = self._sampling
        if self._counts_V is None and self._seen_V is None and not self._biased:
            return logits_V
        logits_V = logits_V.copy()
        if self._seen_V is not None:
            penalty = np.float32(sampling.repetition_penalty)
            seen = logits_V[self._seen_V]
            logits_V[self._seen_V] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._counts_V is not None:
            logits_V -= np.float32(sampling.frequency_penalty) * self._counts_V
            logits_V -= np.float32(sampling.presence_penalty) * (self._counts_V > 0)
        for token, bias in self._biased:
            logits_V[token] += bias
        return logits_V
