"""A model to a GGUF file, as llama.cpp reads the architecture it calls "deepseek2": DeepSeek-V3's and Kimi K2's.

Source of the keys and layouts: llama.cpp's converter (conversion/deepseek.py) and loader (src/models/deepseek2.cpp),
as of llama-cpp-python 0.3.36. Attention is stored in its absorbed form, so llama.cpp caches one latent for all heads as
we do. The rotary parts keep the official interleaved layout, which is what llama.cpp turns for this architecture.

What llama.cpp computes otherwise: its norms inside attention use `rms_norm_eps`, where DeepSeek's code has 1e-6. The
two differ for Moonlight (1e-5), not for Kimi K2.

Shapes: E experts, F inner width, D width, H heads, N no-rope width, V value width, K latent width.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor

from chogori.durable_files import require_space, sync_folder
from chogori.errors import ConfigError, StorageError, WeightsError
from chogori.model.config import K2Config, YarnConfig
from chogori.model.gguf_vocabulary import GgufVocabulary

if TYPE_CHECKING:
    from chogori.model.transformer import K2Model

GgufType = Literal["f32", "bf16", "f16", "q8_0"]
"""How matrices are stored. Vectors, norms and routers are f32 in any case, as llama.cpp wants them."""

_TYPES: dict[GgufType, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
GGUF_TYPES: tuple[GgufType, ...] = tuple(_TYPES)

_ARCHITECTURE = gguf.MODEL_ARCH.DEEPSEEK2
_SPLIT_LATENT = "kv_b_proj.weight"
_ROUTER = "mlp.gate.weight"


@dataclass(frozen=True, kw_only=True)
class SavedGguf:
    """What `save_gguf` wrote."""

    num_tensors: int
    num_bytes: int
    """Size of the file."""
    left_f16: tuple[str, ...]
    """Matrices that q8_0 cannot hold, since their rows are no multiple of its blocks of 32; they are f16."""


def save_gguf(
    model: K2Model,
    path: str | PathLike[str],
    *,
    vocabulary: GgufVocabulary,
    name: str,
    dtype: GgufType = "bf16",
) -> SavedGguf:
    """Write `model` and its vocabulary to one GGUF file, which replaces `path` only when it is whole.

    Args:
        vocabulary: at most as many tokens as the model has rows.
        name: what programs show as the model's name.
        dtype: type of the matrices.

    Raises ConfigError for a model that llama.cpp's "deepseek2" cannot express, WeightsError for one without values or
    with values beyond f16 where that is asked for, StorageError when the disk is full or cannot be written.
    """
    if dtype not in _TYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(GGUF_TYPES)}")
    if model.lm_head.weight.is_meta:
        raise WeightsError(f"the model is on the meta device and has no values to write to {path}")
    path = Path(path).absolute()
    partial = path.with_name(f".{path.name}.saving-{os.getpid()}")
    writer = GGUFWriter(None, gguf.MODEL_ARCH_NAMES[_ARCHITECTURE])
    matrix_type, file_type = _TYPES[dtype]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_hyperparameters(writer, model.config)
    vocabulary.write(writer, model.config.vocab_size)
    tensors = list(_tensors(model, matrix_type))
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.value.shape, np.dtype(np.float32), tensor.num_bytes, tensor.type)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent, sum(tensor.num_bytes for tensor in tensors), f"write {path}")
        with contextlib.closing(writer):
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(tensor.encode())
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"could not write the model to {path}: {error}; {_free_bytes(path):,} bytes are free there. What the file "
            "held before is unchanged; free space or choose another folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    left_f16 = tuple(tensor.name for tensor in tensors if dtype == "q8_0" and tensor.type is GGMLQuantizationType.F16)
    return SavedGguf(num_tensors=len(tensors), num_bytes=path.stat().st_size, left_f16=left_f16)


# ---- sizes ----------------------------------------------------------------------------------------------------------


def _add_hyperparameters(writer: GGUFWriter, config: K2Config) -> None:
    """Every size that llama.cpp needs. Raises ConfigError for what it cannot express."""
    _check_expressible(config)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.dense_ffn_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)

    # Absorbed attention: every head has the one latent for key and value, so there is one key head.
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    # 0, not absence, says that queries are not compressed: except for two sizes, the loader requires the key.
    writer.add_q_lora_rank(config.q_lora_rank or 0)

    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.yarn is not None:
        _add_yarn(writer, config.yarn)

    writer.add_leading_dense_block_count(config.num_dense_layers)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_token)
    writer.add_expert_shared_count(config.num_shared_experts)
    writer.add_expert_feed_forward_length(config.expert_ffn_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.normalize_routing_weights)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config.num_experts > 1:  # the loader expects fewer groups than experts
        # Where a token may visit all groups there is no limit, and the loader takes no such pair for one.
        limited = config.num_groups_per_token < config.num_expert_groups
        writer.add_expert_group_count(config.num_expert_groups if limited else 1)
        writer.add_expert_group_used_count(config.num_groups_per_token if limited else 1)


def _add_yarn(writer: GGUFWriter, yarn: YarnConfig) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(yarn.factor)
    writer.add_rope_scaling_orig_ctx_len(yarn.original_max_position_embeddings)
    writer.add_rope_scaling_yarn_beta_fast(yarn.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(yarn.beta_slow)
    # The 0.1 of YaRN's formula is in the file for this architecture; the loader takes it out again.
    writer.add_rope_scaling_yarn_log_mul(0.1 * yarn.mscale_all_dim)


def _check_expressible(config: K2Config) -> None:
    if config.num_sparse_layers and not config.num_shared_experts:
        raise ConfigError(
            "model.num_shared_experts is 0; llama.cpp expects at least one shared expert beside the routed"
        )
    # llama.cpp tells DeepSeek-V2-Lite and its kin by their sizes, and reads no query compression for them.
    lite = config.num_layers in (26, 27) or (config.num_layers, config.vocab_size) == (48, 128_256)
    if lite and config.q_lora_rank is not None:
        raise ConfigError(
            f"model.q_lora_rank is {config.q_lora_rank} with model.num_layers = {config.num_layers}; llama.cpp takes a "
            "model of so many layers for one without query compression and would not load it"
        )
    yarn = config.yarn
    if yarn is not None and yarn.factor > 1 and not yarn.mscale == yarn.mscale_all_dim != 0:
        raise ConfigError(
            f"yarn.mscale is {yarn.mscale} and yarn.mscale_all_dim is {yarn.mscale_all_dim}; llama.cpp knows only "
            "equal values above 0, such as Kimi K2's 1 and 1, and would scale attention otherwise"
        )


# ---- tensors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _GgufTensor:
    """One tensor of the file: a view of the model's own memory until it is encoded."""

    name: str
    value: Tensor
    type: GGMLQuantizationType

    @property
    def num_bytes(self) -> int:
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return prod(self.value.shape) // block_size * block_bytes

    def encode(self) -> np.ndarray:
        """The bytes as they are stored. Raises WeightsError for a value that becomes infinite in f16."""
        value = self.value.cpu()
        if self.type is GGMLQuantizationType.F32:
            return value.float().contiguous().numpy()
        if self.type is GGMLQuantizationType.BF16:
            return value.to(torch.bfloat16).contiguous().view(torch.int16).numpy()  # numpy has no bfloat16
        if self.type is GGMLQuantizationType.F16:
            half = value.to(torch.float16).contiguous()
            if not half.isfinite().all():
                raise WeightsError(
                    f"{self.name} holds {value.abs().max().item():g}, and f16 ends at 65504; export as bf16 or f32"
                )
            return half.numpy()
        # One matrix at a time: the float32 copy of all experts of a layer would be large.
        matrices = value if value.ndim == 3 else value.unsqueeze(0)
        return np.concatenate([gguf.quantize(m.float().contiguous().numpy(), self.type) for m in matrices])


def _tensors(model: K2Model, matrix_type: GGMLQuantizationType) -> Iterator[_GgufTensor]:
    """Every tensor of the file, in the model's order."""
    names = gguf.get_tensor_name_map(_ARCHITECTURE, model.config.num_layers)
    for key, value in _named_values(model):
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"llama.cpp has no name for {key}"
        stored = GGMLQuantizationType.F32 if value.ndim == 1 or key.endswith(_ROUTER) else matrix_type
        if value.shape[-1] % gguf.GGML_QUANT_SIZES[stored][0]:
            stored = GGMLQuantizationType.F16
        yield _GgufTensor(name=name, value=value, type=stored)


def _named_values(model: K2Model) -> Iterator[tuple[str, Tensor]]:
    """The model's parameters and router biases under names that gguf's table knows, attention in absorbed form."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, parameter in state.items():
        value = parameter.detach()
        if key.endswith(_SPLIT_LATENT):
            # The rows of a head are first its keys', then its values'. Both become H matrices; that of the keys is
            # stored transposed, since it carries queries to the latent.
            nope, width = model.config.qk_nope_head_dim, model.config.v_head_dim
            up_HXK = value.unflatten(0, (model.config.num_heads, -1))
            k_HNK, v_HVK = up_HXK.split([nope, width], dim=1)
            yield key.replace("kv_b_proj", "k_b_proj"), k_HNK.transpose(1, 2)
            yield key.replace("kv_b_proj", "v_b_proj"), v_HVK
        elif value.ndim == 3:
            yield f"{key}.weight", value  # experts are stacked here as there: [E, F, D] or [E, D, F]
        elif key.endswith("e_score_correction_bias"):
            yield key.replace("_bias", ".bias"), value
        elif value.is_floating_point():  # all but the routers' counters
            yield key, value


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
