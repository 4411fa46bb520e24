"""torch.compile, applied to a model from outside."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from chogori.model.transformer import K2Model
from chogori.train.config import TrainConfig


def should_compile(config: TrainConfig) -> bool:
    """Whether the run goes through torch.compile.

    "auto" never does so far: the kernels of attention, experts and loss are written out by hand, and what is left
    between them did not win back its compilation on a CPU; on CUDA it has not been measured.
    """
    return config.compile == "always"


def compile_blocks(model: K2Model, *, backend: str = "inductor") -> None:
    """Compile the blocks of `model` in place; its parameters, their names and its results up to rounding stay.

    The routed experts stay outside: how many tokens each gets differs from step to step, and every new number would
    be compiled anew.
    """
    for block in model.model.layers:
        experts = getattr(block.mlp, "experts", None)
        if experts is not None:
            module = cast(nn.Module, experts)
            module.forward = torch.compiler.disable(module.forward)
        block.compile(backend=backend)
