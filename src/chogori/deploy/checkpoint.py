"""The weights to deploy: a preset with its published checkpoint, or a Hugging Face folder. Reads no tensor."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from chogori.errors import ConfigError, WeightsError
from chogori.model.config import PRESETS, K2Config
from chogori.model.hf_config import from_hf
from chogori.model.weight_files import CONFIG_FILE, INDEX_FILE, read_json

WeightFormat = Literal["fp8", "bfloat16", "float16"]
"""fp8 is block FP8: e4m3 matrices with one float32 scale per block of 128 × 128, the rest in bfloat16."""
StoredFormat = Literal["fp8", "bfloat16", "float16", "float32"]
Dialect = Literal["kimi_k2", "deepseek_v3"]
"""Whose tool-call tokens the model writes."""

FP8_BLOCK = 128
DEEPSEEK_VOCABULARY = 129_280
"""Rows of DeepSeek-V3's embedding: what tells its checkpoints from those of K2's family with the same model_type."""

# What the official repositories of the presets hold.
_PUBLISHED: dict[str, tuple[str, WeightFormat]] = {
    "kimi-k2": ("moonshotai/Kimi-K2-Instruct", "fp8"),
    "moonlight-16b-a3b": ("moonshotai/Moonlight-16B-A3B-Instruct", "bfloat16"),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model as the engines will load it."""

    name: str
    """What clients call it."""
    location: str
    """Folder, or name on the Hugging Face hub, given to the engine."""
    sizes: K2Config
    stored_format: StoredFormat
    """Of the files."""
    format: WeightFormat
    """On the GPUs."""
    dialect: Dialect = "kimi_k2"
    stored_bytes: int | None = None
    """Bytes of all tensors as the folder's index says; None where there is none."""
    converted: bool = False
    """Whether the files must be converted to `format` before an engine can load them."""

    @property
    def is_folder(self) -> bool:
        """Whether the engine reads a folder rather than downloading."""
        return self.location.startswith("/")


def find_checkpoint(model: str, *, weights: str | None = None, format: WeightFormat | None = None) -> Checkpoint:
    """The checkpoint that `model` names: a preset, or a folder with config.json.

    Args:
        model: preset or folder.
        weights: where the engines find the weights; None for the preset's official repository, or the folder.
        format: number type that the weights will be converted to beforehand; None for the one they have (float32 is
            served as bfloat16, which the engines convert to while they load).

    Raises ConfigError for another name, WeightsError for a folder that cannot be read or holds another quantization.
    """
    if model in PRESETS:
        location, own = _PUBLISHED.get(model, (f"{model}-hf", "bfloat16"))
        found = Checkpoint(
            name=model, location=_absolute(location), sizes=PRESETS[model], stored_format=own, format=own
        )
    elif Path(model).is_dir():
        found = _read_folder(Path(model))
    else:
        near = difflib.get_close_matches(model, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"model is {model!r}, neither a preset ({', '.join(PRESETS)}) nor a folder with {CONFIG_FILE}{hint}"
        )
    if weights is not None:
        found = dataclasses.replace(found, location=_absolute(weights))
    if format is not None and format != found.format:
        found = dataclasses.replace(found, format=format, stored_bytes=None, converted=True)
    return found


def _absolute(location: str) -> str:
    """Folders as absolute paths, since the engine may be started elsewhere; names on the hub as they are."""
    path = Path(location)
    if location.startswith(("/", "./", "../", "~")) or path.is_dir():
        return str(path.expanduser().absolute())
    return location


def _read_folder(folder: Path) -> Checkpoint:
    values = read_json(folder / CONFIG_FILE)
    sizes = from_hf(values)
    is_deepseek = values.get("model_type") == "deepseek_v3" and sizes.vocab_size == DEEPSEEK_VOCABULARY
    stored = _format(values, folder / CONFIG_FILE)
    return Checkpoint(
        name=folder.resolve().name,
        location=str(folder.absolute()),
        sizes=sizes,
        stored_format=stored,
        format="bfloat16" if stored == "float32" else stored,
        dialect="deepseek_v3" if is_deepseek else "kimi_k2",
        stored_bytes=_stored_bytes(folder),
    )


def _format(values: Mapping[str, object], path: Path) -> StoredFormat:
    quantization = values.get("quantization_config")
    if isinstance(quantization, Mapping):
        entries = cast(Mapping[str, object], quantization)
        method, block = entries.get("quant_method"), entries.get("weight_block_size")
        if method != "fp8" or block != [FP8_BLOCK, FP8_BLOCK]:
            raise WeightsError(
                f"{path}: quantization_config is {method!r} with weight_block_size {block!r}; expected none, or 'fp8' "
                f"with [{FP8_BLOCK}, {FP8_BLOCK}]: only these can be sized"
            )
        return "fp8"
    dtype = values.get("torch_dtype", values.get("dtype", "bfloat16"))
    if dtype not in ("bfloat16", "float16", "float32"):
        raise WeightsError(f"{path}: torch_dtype is {dtype!r}; expected bfloat16, float16 or float32")
    return cast(StoredFormat, dtype)


def _stored_bytes(folder: Path) -> int | None:
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    metadata = read_json(path).get("metadata")
    total = cast(Mapping[str, object], metadata).get("total_size") if isinstance(metadata, Mapping) else None
    return int(total) if isinstance(total, (int, float)) else None
