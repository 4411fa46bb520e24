"""Asking an engine and waiting for its answers, and weights in which a mistake shows."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from chogori.chat.completer import Sampling
from chogori.engine.answer import Answer, Ended, Output, Produced, PromptRead
from chogori.engine.constraints import Constraint, FreeText
from chogori.engine.engine import Engine
from chogori.engine.vocabulary import Vocabulary
from chogori.model import K2Model

PATIENCE_S = 60
"""Only a hang takes so long."""


@torch.no_grad()
def scatter(model: K2Model, seed: int = 0) -> K2Model:
    """Fill every parameter and the routers' biases with numbers that keep activations near 1.

    Initial weights of 0.02 make attention nearly uniform and hide errors in it.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            value.normal_(0.0, 0.2, generator=generator)
        elif "norm" in name:
            value.normal_(1.0, 0.2, generator=generator)
        elif value.ndim > 1:
            value.normal_(0.0, value.shape[-1] ** -0.5, generator=generator)
    return model.eval()


@dataclass(eq=False)
class Asked:
    """One answer asked for, and what came of it."""

    outputs: queue.Queue[Output] = field(default_factory=lambda: queue.Queue[Output]())
    received: list[Output] = field(default_factory=list[Output])
    answer: Answer | None = None

    def next(self) -> Output:
        """The next output."""
        self.received.append(self.outputs.get(timeout=PATIENCE_S))
        return self.received[-1]

    def finish(self) -> Ended:
        """All further outputs."""
        while not isinstance(output := self.next(), Ended):
            pass
        return output

    @property
    def tokens(self) -> list[int]:
        """Tokens handed out so far."""
        return [output.token for output in self.received if isinstance(output, Produced)]

    @property
    def cached_tokens(self) -> int:
        """What was said when the prompt was read."""
        return next(output.cached_tokens for output in self.received if isinstance(output, PromptRead))


def ask(
    engine: Engine,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    *,
    constraint: Constraint | None = None,
    choice: int = 0,
    scores_prompt: bool = False,
    **sampling: object,
) -> Asked:
    """Submit a prompt. Answers go on after an end token unless a constraint says otherwise."""
    asked = Asked()
    settings: dict[str, object] = {"max_tokens": 8, "seed": 0, **sampling}
    asked.answer = engine.submit(
        prompt,
        Sampling(**settings),  # pyright: ignore[reportArgumentType]
        constraint or FreeText(vocabulary, bars_end=True),
        asked.outputs.put,
        choice=choice,
        scores_prompt=scores_prompt,
    )
    return asked
