"""Weights of a model from Hugging Face safetensors folders with the official tensor names.

Reading goes tensor by tensor, so memory holds the model once; block FP8 is turned into the asked type on the way.
Writing is in `weights_export`. The model itself is only a type here: `K2Model.from_pretrained` passes its class.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from chogori.errors import WeightsError
from chogori.model.config import K2Config
from chogori.model.fp8 import SCALE_SUFFIX, dequantize_blocks, scale_shape
from chogori.model.hf_config import from_hf
from chogori.model.tensor_layout import ROUTER_BIAS, StoredTensor, fused_expert_tensors, stored_tensors
from chogori.model.weight_files import CONFIG_FILE
from chogori.model.weight_folder import Header, WeightFolder

if TYPE_CHECKING:
    from chogori.model.transformer import K2Model

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED_DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
}
_FLOAT8 = "F8_E4M3"
_NUM_NAMED = 5


class IgnoredTensorsWarning(UserWarning):
    """A weight folder holds tensors that this model has no use for, such as multi-token-prediction layers."""


@dataclass(frozen=True, kw_only=True)
class LoadedTensor:
    """A parameter or a part of it, as it comes from the files."""

    parameter: str
    """Name in the model's state."""
    expert: int | None
    """Index in the stack of experts; None for the whole parameter."""
    value: Tensor
    """On the CPU, in the asked type; may be backed by the mapped file, so copy before changing it."""


def stream_tensors(folder: str | PathLike[str], *, dtype: torch.dtype | None = None) -> Iterator[LoadedTensor]:
    """Every weight of a folder, one at a time, after all names and shapes were checked.

    For whoever places weights by themselves: on several devices, or where the model is larger than memory.
    `dtype=None` keeps the type that config.json names, else that of the files (bfloat16 for block FP8). The routers'
    correction biases are float32 in any case.

    Raises WeightsError when the files do not fit config.json, or hold a form of quantisation other than block FP8.
    """
    with WeightFolder(Path(folder)) as files:
        yield from _stream(files, _match(files, from_hf(files.config)), dtype or _folder_dtype(files))


def load_pretrained(
    model_class: type[K2Model],
    folder: str | PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> K2Model:
    """A model of `model_class` with the sizes and weights of a folder, in the type that `stream_tensors` gives.

    On `device="meta"` names, shapes and files are checked and nothing is read.

    Raises WeightsError as `stream_tensors`, and ConfigError for an architecture that cannot be read.
    """
    with WeightFolder(Path(folder)) as files:
        config = from_hf(files.config)
        with torch.device("meta"):
            model = model_class(config)
        plan = _match(files, config)
        file_dtype = dtype or _folder_dtype(files)
        state: dict[str, Tensor] = {}
        for name, value in _state(model):
            exact = name.endswith(ROUTER_BIAS) or not value.is_floating_point()
            # What the files do not hold, counters of the router, starts at zero.
            state[name] = torch.zeros(value.shape, dtype=value.dtype if exact else file_dtype, device=device)
            _put(model, name, state[name])
        model.compute_dtype = file_dtype
        if torch.device(device).type != "meta":
            for loaded in _stream(files, plan, file_dtype):
                target = state[loaded.parameter]
                (target if loaded.expert is None else target[loaded.expert]).copy_(loaded.value)
    return model


def _stream(files: WeightFolder, plan: Mapping[str, StoredTensor], dtype: torch.dtype) -> Iterator[LoadedTensor]:
    block = _weight_block(files) if any(files.headers[name].dtype == _FLOAT8 for name in plan) else None
    for name, stored in sorted(plan.items(), key=lambda item: files.headers[item[0]].file):
        wanted = torch.float32 if name.endswith(ROUTER_BIAS) else dtype
        value = files.read(name)
        if files.headers[name].dtype == _FLOAT8:
            assert block is not None
            value = dequantize_blocks(value, files.read(name + SCALE_SUFFIX), wanted, block=block, name=name)
        else:
            value = value.to(wanted)
        for piece in stored.pieces:
            part = value if piece.rows is None else value[..., piece.rows[0] : piece.rows[1], :]
            yield LoadedTensor(parameter=piece.parameter, expert=piece.expert, value=part)


def _match(files: WeightFolder, config: K2Config) -> dict[str, StoredTensor]:
    """What to read, by file name of the tensor; raises WeightsError unless it is exactly what `config` needs."""
    headers = files.headers
    expected = stored_tensors(config)
    for layer in range(config.num_dense_layers, config.num_layers):
        fused = fused_expert_tensors(config, layer)
        if any(name in headers for name in fused):
            single = re.compile(rf"model\.layers\.{layer}\.mlp\.experts\.\d+\.")
            expected = {name: stored for name, stored in expected.items() if not single.match(name)} | fused
    problems: list[str] = []
    missing = [f"{name} {list(stored.shape)}" for name, stored in expected.items() if name not in headers]
    misshaped: list[str] = []
    unreadable: list[str] = []
    scales: set[str] = set()
    for name, stored in expected.items():
        header = headers.get(name)
        if header is None:
            continue
        if header.shape != stored.shape:
            misshaped.append(f"{name} is {list(header.shape)}, expected {list(stored.shape)}")
        if header.dtype == _FLOAT8 and len(stored.shape) == 2:
            scales.add(name + SCALE_SUFFIX)
            if name + SCALE_SUFFIX not in headers:
                missing.append(f"{name}{SCALE_SUFFIX} {list(scale_shape(stored.shape, _weight_block(files)))}")
        elif header.dtype not in _STORED_DTYPES:
            unreadable.append(f"{name} is {header.dtype}")
    extra = [name for name in headers if name not in expected and name not in scales]
    ignored = [name for name in extra if _is_ignored(name, config, files.config)]
    unexpected = [f"{name} {list(headers[name].shape)}" for name in extra if name not in set(ignored)]
    for kind, names in (
        ("missing", missing),
        ("of another shape", misshaped),
        ("of a type that cannot be read (only floating point and block FP8 can)", unreadable),
        ("unexpected", unexpected),
    ):
        if names:
            more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
            problems.append(f"{len(names)} {kind}: {', '.join(names[:_NUM_NAMED])}{more}")
    if problems:
        raise WeightsError(
            f"the weights in {files.folder} do not fit a model of {config.num_layers} layers, width "
            f"{config.hidden_size} and {config.num_experts} experts: {'; '.join(problems)}"
        )
    if ignored:
        warnings.warn(
            f"{files.folder} holds {len(ignored)} tensors that this model does not use (multi-token prediction or "
            f"rotary tables) and they were left out, such as {ignored[0]}",
            IgnoredTensorsWarning,
            stacklevel=4,
        )
    return expected


def _is_ignored(name: str, config: K2Config, values: Mapping[str, object]) -> bool:
    """Tensors that old or larger checkpoints hold beside the model's own: declared MTP layers, and rotary tables."""
    if name.endswith(".rotary_emb.inv_freq"):
        return True
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    num_extra = values.get("num_nextn_predict_layers", 0)
    return (
        layer is not None
        and isinstance(num_extra, int)
        and config.num_layers <= int(layer[1]) < config.num_layers + num_extra
    )


def _folder_dtype(files: WeightFolder) -> torch.dtype:
    named = files.config.get("dtype", files.config.get("torch_dtype"))
    if isinstance(named, str):
        if named not in DTYPES:
            raise WeightsError(
                f"{files.folder / CONFIG_FILE} names the type {named!r}; expected one of {', '.join(DTYPES)}, or pass "
                "dtype"
            )
        return DTYPES[named]
    found = {header.dtype for name, header in files.headers.items() if _is_plain_weight(name, header)}
    return _STORED_DTYPES[found.pop()] if len(found) == 1 else torch.bfloat16


def _is_plain_weight(name: str, header: Header) -> bool:
    return header.dtype in _STORED_DTYPES and not name.endswith((ROUTER_BIAS, SCALE_SUFFIX))


def _weight_block(files: WeightFolder) -> tuple[int, int]:
    where = f"{files.folder / CONFIG_FILE}: quantization_config"
    record = files.config.get("quantization_config")
    if not isinstance(record, Mapping):
        raise WeightsError(f"{where} is missing, and the weights are float8; expected quant_method fp8")
    values = cast(Mapping[str, object], record)
    method = values.get("quant_method")
    if method != "fp8":
        raise WeightsError(f"{where}.quant_method is {method!r}; expected 'fp8' (block FP8), the only form read here")
    block = values.get("weight_block_size")
    if isinstance(block, list):
        sizes = cast(list[object], block)
        if len(sizes) == 2 and isinstance(sizes[0], int) and isinstance(sizes[1], int) and min(sizes[0], sizes[1]) > 0:
            return sizes[0], sizes[1]
    raise WeightsError(f"{where}.weight_block_size is {block!r}; expected two sizes such as [128, 128]")


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    setattr(module, leaf, nn.Parameter(value) if isinstance(getattr(module, leaf), nn.Parameter) else value)
