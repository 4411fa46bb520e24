"""The other side of the comparisons: transformers' DeepSeek-V3 of the same sizes, set up as its users would."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from chogori.model import K2Config
from chogori.model.hf_config import to_hf

View = tuple[nn.Parameter, nn.Parameter, Any]
"""A matrix that shares storage with part of a parameter: the view, the parameter, and the index of the part."""


def deepseek_config(config: K2Config) -> Any:
    """transformers' configuration of the same model."""
    from transformers import DeepseekV3Config

    fields: dict[str, Any] = {**to_hf(config), "num_nextn_predict_layers": 0}
    return DeepseekV3Config(**fields)


def muon_matrices(model: nn.Module) -> tuple[list[Tensor], list[View], list[nn.Parameter]]:
    """What torch.optim.Muon, which takes 2-D parameters only, can be given: matrices, views that need their gradient
    set before each step, and the parameters left to AdamW."""
    matrices: list[Tensor] = []
    views: list[View] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "embed_tokens" in name or "lm_head" in name:
            rest.append(parameter)
        elif parameter.ndim == 2:
            matrices.append(parameter)
        else:
            rows = parameter.shape[1] // 2 if "gate_up" in name else parameter.shape[1]
            for expert in range(parameter.shape[0]):
                for start in range(0, parameter.shape[1], rows):
                    index = (expert, slice(start, start + rows))
                    view = nn.Parameter(parameter.data[index])
                    views.append((view, parameter, index))
                    matrices.append(view)
    return matrices, views, rest
