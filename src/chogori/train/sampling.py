"""Text from a saved run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from chogori.chat.tokenizer import Tokenizer
from chogori.errors import ConfigError
from chogori.model.generation import generate
from chogori.model.transformer import K2Model
from chogori.train.saved_run import open_run


class Sampler:
    """A model and its tokenizer, ready to continue text."""

    def __init__(self, model: K2Model, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def open(cls, path: Path) -> Sampler:
        """The finished model of the run in `path`, or its newest good checkpoint (RunError when it has neither)."""
        run = open_run(path)
        return cls(run.model, run.tokenizer)

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Pieces of the continuation of `prompt` as they are drawn; without the prompt.

        Ends at the end-of-text token, after `max_new_tokens`, or when the model's longest context is full. A piece is
        held back while its last character is incomplete, so the pieces joined are valid text. One `seed` gives one
        text; None draws anew.
        """
        device = next(self.model.parameters()).device
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        room = self.model.config.max_position_embeddings - len(ids)
        if room < 1:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, and the model reads at most "
                f"{self.model.config.max_position_embeddings} with its continuation; shorten the prompt"
            )
        generator = torch.Generator(device=device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        # Rows of the model that the vocabulary does not use are never targets; drawing one ends the text too.
        unused = range(self.tokenizer.vocab_size, self.model.config.vocab_size)
        ends = {self.tokenizer.eos_id, *unused}
        drawn: list[int] = []
        shown = ""
        for next_B in generate(
            self.model,
            torch.tensor([ids], device=device),
            max_new_tokens=min(max_new_tokens, room),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            generator=generator,
            stop_ids=ends,
        ):
            token = int(next_B[0])
            if token in ends:
                break
            drawn.append(token)
            text = self.tokenizer.decode(drawn)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
        # A last character that stayed incomplete is left out.
        text = self.tokenizer.decode(drawn).rstrip("\N{REPLACEMENT CHARACTER}")
        if len(text) > len(shown):
            yield text[len(shown) :]

    def sample(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> str:
        """The whole continuation of `prompt`; see `stream`."""
        pieces = self.stream(
            prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
        )
        return "".join(pieces)
