"""Weights of a model to a Hugging Face safetensors folder, under the official tensor names.

The new folder is built beside the old one and takes its place by renaming, so that an error on the way, such as a full
disk, leaves the old one as it was. Other files of the old folder, such as a tokenizer, move along.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from chogori.errors import ConfigError, StorageError, WeightsError
from chogori.model.config import K2Config
from chogori.model.hf_config import ModelType, to_hf
from chogori.model.tensor_layout import ROUTER_BIAS, StoredTensor, stored_tensors
from chogori.model.weight_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from chogori.model.weight_folder import GENERATION_CONFIG_FILE
from chogori.model.weights import DTYPES

if TYPE_CHECKING:
    from chogori.model.transformer import K2Model

MAX_SHARD_BYTES = 5_000_000_000


def save_pretrained(
    model: K2Model,
    folder: str | PathLike[str],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: torch.dtype | None = None,
    model_type: ModelType = "deepseek_v3",
) -> None:
    """Write `model`: safetensors under the official names, an index where there are several files, config.json and
    generation_config.json.

    Args:
        max_shard_bytes: largest size of one file; a tensor above it gets its own.
        dtype: type to store; the parameters' own when None. The routers' correction biases stay float32.
        model_type: "deepseek_v3" loads in transformers. The official "kimi_k2" is for engines that tell the two apart;
            transformers 5 does not know it (its Auto classes refuse, and its DeepSeek-V3 class leaves the experts of
            such a folder unread, with a report but no error).

    Raises StorageError when the disk is full or cannot be written (the old folder stays as it was), WeightsError for
    a model without values (on the meta device), ConfigError for arguments that cannot be.
    """
    if max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes is {max_shard_bytes}; expected at least 1, such as {MAX_SHARD_BYTES}")
    if dtype is not None and dtype not in DTYPES.values():
        raise ConfigError(f"dtype is {dtype}; expected one of {', '.join(str(known) for known in DTYPES.values())}")
    config = model.config
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if state["lm_head.weight"].device.type == "meta":
        raise WeightsError(f"the model is on the meta device and has no values to write to {folder}")
    stored_dtype = dtype or state["lm_head.weight"].dtype
    folder = Path(folder).absolute()
    staging = folder.parent / f".{folder.name}.saving-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        _write_shards(staging, state, _shards(config, stored_dtype, max_shard_bytes), stored_dtype)
        dtype_name = str(stored_dtype).removeprefix("torch.")
        _write_json(staging / CONFIG_FILE, to_hf(config, model_type=model_type, dtype=dtype_name))
        ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
        _write_json(staging / GENERATION_CONFIG_FILE, {key: value for key, value in ids.items() if value is not None})
        _swap(staging, folder)
    except (OSError, SafetensorError) as error:
        free_bytes = shutil.disk_usage(_existing(folder)).free
        raise StorageError(
            f"could not write the weights to {folder}: {error}; {free_bytes:,} bytes are free there. What the folder "
            "held before is unchanged; free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _shards(config: K2Config, dtype: torch.dtype, max_shard_bytes: int) -> list[dict[str, StoredTensor]]:
    """The tensors of each file, in the official order."""
    shards: list[dict[str, StoredTensor]] = [{}]
    filled = 0
    for name, stored in stored_tensors(config).items():
        itemsize = 4 if name.endswith(ROUTER_BIAS) else dtype.itemsize
        size = itemsize * torch.Size(stored.shape).numel()
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = stored
        filled += size
    return shards


def _write_shards(
    staging: Path, state: Mapping[str, Tensor], shards: list[dict[str, StoredTensor]], dtype: torch.dtype
) -> None:
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _stored_value(state, name, stored, dtype) for name, stored in shard.items()}
        save_file(tensors, staging / file, metadata={"format": "pt"})
        _flush(staging / file)
        weight_map |= dict.fromkeys(tensors, file)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        _write_json(staging / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _stored_value(state: Mapping[str, Tensor], name: str, stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    (piece,) = stored.pieces
    value = state[piece.parameter].detach()
    if piece.expert is not None:
        value = value[piece.expert]
    assert tuple(value.shape) == stored.shape, f"{name} is {tuple(value.shape)}, expected {stored.shape}"
    return value.to(device="cpu", dtype=torch.float32 if name.endswith(ROUTER_BIAS) else dtype).contiguous()


def _swap(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder`, with those files of `folder` that are not weights.

    A process killed between the two renames leaves the old folder whole, under the name `.NAME.retired-PID`.
    """
    if not folder.exists():
        staging.rename(folder)
        return
    for path in folder.iterdir():
        is_weights = path.name == INDEX_FILE or (path.name.startswith("model") and path.suffix == ".safetensors")
        if is_weights or (staging / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, staging / path.name, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(path), str(staging / path.name))
    retired = folder.parent / f".{folder.name}.retired-{os.getpid()}"
    folder.rename(retired)
    try:
        staging.rename(folder)
    except OSError:
        retired.rename(folder)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
