"""Finding the first tensor that is NaN or infinite, once it is known that one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def first_bad_parameter(model: nn.Module) -> str | None:
    """The first parameter or buffer with a value that is not finite, in words."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if (found := _describe(tensor)) is not None:
            return f"the weight {name} holds {found}"
    return None


def first_bad_gradient(model: nn.Module) -> str | None:
    """The first gradient with a value that is not finite, in words."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and (found := _describe(parameter.grad)) is not None:
            return f"the gradient of {name} holds {found}"
    return None


def first_bad_activation(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """The first module, in the order of `forward`, whose output is not finite although its inputs are, in words."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if found or any(_describe(tensor) is not None for tensor in _tensors(inputs)):
                return
            for tensor in _tensors(output):
                if (what := _describe(tensor)) is not None:
                    found.append(f"the output of {name or type(model).__name__} holds {what}")
                    return

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _describe(tensor: Tensor) -> str | None:
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return None
    num_nan, num_infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{num_nan:,} NaN and {num_infinite:,} infinite of {tensor.numel():,} values"


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
