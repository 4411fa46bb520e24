"""Which parameter goes to Muon and which to AdamW, decided in one place and printable.

Matrices go to Muon: projections, experts (each a matrix of its own), the router, convolution kernels. Embeddings, the
output head, norms, biases and other vectors go to AdamW; of these only matrices are decayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from chogori.errors import ConfigError
from chogori.optim.layout import MatrixLayout

HEAD_NAMES = frozenset({"lm_head", "head", "output", "unembed", "unembedding", "embed_out", "output_projection"})
"""Last or last but one part of the names under which models keep their output projection."""


@dataclass(frozen=True, kw_only=True)
class ParameterRole:
    """What the optimizer does with one parameter."""

    name: str
    parameter: nn.Parameter = field(repr=False, compare=False)
    update: Literal["muon", "adamw"]
    decayed: bool
    """Whether weight decay applies."""
    reason: str
    """The rule that decided, in a few words."""
    layout: MatrixLayout = field(default_factory=MatrixLayout)
    """Where the matrices lie in a parameter that goes to Muon."""


def assign_roles(model: nn.Module, *, per_head: bool = False) -> list[ParameterRole]:
    """The role of every trainable parameter of `model`, tied weights once.

    `per_head` cuts the query, key, value and output projections of attention layers into one matrix per head, where
    the module tells its number of heads.
    """
    owners: dict[str, tuple[nn.Module, str]] = {}
    for prefix, module in model.named_modules():
        for local, _ in module.named_parameters(recurse=False):
            owners[f"{prefix}.{local}" if prefix else local] = (module, local)
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    heads = _head_layouts(model) if per_head else {}
    roles: list[ParameterRole] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module, local = owners[name]
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            role = _adamw(name, parameter, "embedding")
        elif module is head and local == "weight":
            role = _adamw(name, parameter, "output head")
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and local == "weight":
            role = _muon(name, parameter, "convolution, flattened", MatrixLayout(flatten=True))
        elif local == "gate_up_proj" and _gate_and_up_are_halves(module, parameter):
            half = parameter.shape[-2] // 2
            role = _muon(name, parameter, "gate and up apart", MatrixLayout(row_splits=(half, half)))
        elif id(parameter) in heads:
            role = _muon(name, parameter, "matrix per head", heads[id(parameter)])
        else:
            role = role_by_name(name, parameter)
        roles.append(role)
    if not roles:
        raise ConfigError("the model has no trainable parameters; did you freeze all of it (requires_grad=False)?")
    return roles


def role_by_name(name: str, parameter: nn.Parameter) -> ParameterRole:
    """The role of a parameter of which only name and shape are known."""
    shape = parameter.shape
    if parameter.ndim < 2 or sum(size > 1 for size in shape) < 2:
        return _adamw(name, parameter, "vector", decayed=False)
    parts = name.split(".")
    if any("embed" in part or part == "wte" or part == "wpe" for part in parts[-2:]):
        return _adamw(name, parameter, "embedding, by its name")
    if HEAD_NAMES.intersection(parts[-2:]):
        return _adamw(name, parameter, "output head, by its name")
    if parameter.ndim == 2:
        return _muon(name, parameter, "matrix", MatrixLayout())
    return _muon(name, parameter, "stack of matrices", MatrixLayout())


def _adamw(name: str, parameter: nn.Parameter, reason: str, *, decayed: bool = True) -> ParameterRole:
    return ParameterRole(name=name, parameter=parameter, update="adamw", decayed=decayed, reason=reason)


def _muon(name: str, parameter: nn.Parameter, reason: str, layout: MatrixLayout) -> ParameterRole:
    if not parameter.is_floating_point():
        raise ConfigError(
            f"parameter {name} is {parameter.dtype}; Muon needs a real floating-point matrix. Freeze it, or pass "
            "parameter groups that leave it out"
        )
    return ParameterRole(name=name, parameter=parameter, update="muon", decayed=True, reason=reason, layout=layout)


def _gate_and_up_are_halves(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether [E, 2F, D] holds gate over up, judged by the partner down_proj [E, D, F]."""
    down = getattr(module, "down_proj", None)
    return (
        isinstance(down, torch.Tensor)
        and down.ndim == parameter.ndim == 3
        and parameter.shape[1] == 2 * down.shape[2]
        and parameter.shape[2] == down.shape[1]
    )


def _head_layouts(model: nn.Module) -> dict[int, MatrixLayout]:
    """Layouts of attention projections cut by head, by id of the parameter."""
    layouts: dict[int, MatrixLayout] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        num_heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
        output = getattr(module, "o_proj", None)
        if not isinstance(num_heads, int) or not isinstance(output, nn.Linear):
            continue
        for name in ("q_proj", "q_b_proj", "kv_b_proj", "k_proj", "v_proj"):
            projection = getattr(module, name, None)
            if not isinstance(projection, nn.Linear):
                continue
            width = getattr(module, "head_dim", None) if name in ("k_proj", "v_proj") else None
            count = projection.out_features // width if isinstance(width, int) else num_heads
            if count and projection.out_features % count == 0:
                height = projection.out_features // count
                layouts[id(projection.weight)] = MatrixLayout(row_splits=(height,) * count)
        if output.in_features % num_heads == 0:
            width = output.in_features // num_heads
            layouts[id(output.weight)] = MatrixLayout(column_splits=(width,) * num_heads)
    return layouts


def describe_roles(roles: Sequence[ParameterRole]) -> str:
    """A table of roles, consecutive layers with the same roles merged."""
    rows = [("update", "decay", "parameters", "matrices", "numbers", "why")]
    for pattern, members in _merge(roles).items():
        first = members[0]
        numbers = sum(role.parameter.numel() for role in members)
        matrices = "-"
        if first.update == "muon":
            total = sum(role.layout.count(role.parameter.shape) for role in members)
            n, m = first.layout.matrices(first.parameter.detach())[0].shape[1:]
            mixed = "…" if len({first.layout.row_splits[:1], first.layout.row_splits[-1:]}) > 1 else ""
            matrices = f"{total} of {n}×{m}{mixed}"
        rows.append((first.update, "yes" if first.decayed else "no", pattern, matrices, f"{numbers:,}", first.reason))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for update in ("muon", "adamw"):
        chosen = [role for role in roles if role.update == update]
        numbers = sum(role.parameter.numel() for role in chosen)
        matrices = sum(role.layout.count(role.parameter.shape) for role in chosen) if update == "muon" else 0
        counted = f", {matrices} matrices" if matrices else ""
        lines.append(f"{update}: {len(chosen)} parameters{counted}, {numbers:,} numbers")
    return "\n".join(lines)


def _merge(roles: Iterable[ParameterRole]) -> dict[str, list[ParameterRole]]:
    """Group roles that differ only in the layer numbers of their names, as {"model.layers.{1-3}.…": roles}."""
    groups: dict[tuple[object, ...], list[ParameterRole]] = {}
    for role in roles:
        pattern = ".".join("*" if part.isdigit() else part for part in role.name.split("."))
        groups.setdefault(
            (pattern, role.parameter.shape, role.update, role.decayed, role.reason, role.layout), []
        ).append(role)
    merged: dict[str, list[ParameterRole]] = {}
    for members in groups.values():
        merged[_common_name([role.name for role in members])] = members
    return merged


def _common_name(names: Sequence[str]) -> str:
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(_common_part(list(dict.fromkeys(column))) for column in columns)


def _common_part(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    numbers = sorted(map(int, parts))
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"
