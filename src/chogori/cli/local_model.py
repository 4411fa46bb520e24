"""A model on this machine, named as people name one: a run, a Hugging Face folder, or a preset with random weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chogori.chat.completer import ChatRequest, Completer
from chogori.chat.language_samples import SAMPLES
from chogori.chat.tokenizer import Tokenizer
from chogori.cli.main import did_you_mean
from chogori.engine.config import EngineConfig
from chogori.errors import BackendError, ConfigError
from chogori.model.accounting import count_parameters
from chogori.model.config import PRESETS, K2Config
from chogori.model.hf_config import from_hf
from chogori.model.weight_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, read_json
from chogori.serve.backend import Gauges, ModelCard
from chogori.serve.caching.prefix_pinner import PinnedPrefix
from chogori.train.run_folder import RunFolder

if TYPE_CHECKING:
    from chogori.engine.completer import EngineCompleter
    from chogori.model.transformer import K2Model

SIZES = (
    *("vocab_size", "hidden_size", "num_layers", "num_dense_layers", "dense_ffn_size", "expert_ffn_size"),
    *("num_experts", "num_experts_per_token", "num_shared_experts", "num_heads", "q_lora_rank", "kv_lora_rank"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
)
"""Fields that say which shapes a model's tensors have, and how many are used."""
RANDOM_SUFFIX = ":random"
MAX_RANDOM_PARAMETERS = 20_000_000_000
"""What still fits a large machine; a model with random weights is for trying things out."""
RANDOM_VOCABULARY = 1_024
"""Ids of the vocabulary that a preset with random weights gets, which is learnt from a few short texts."""


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What `--model` names, checked without loading weights."""

    folder: Path | None
    """A run or a Hugging Face folder."""
    preset: str | None
    """Of a model with random weights."""

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Read FOLDER or PRESET:random. Raises ConfigError for a folder or preset that is not there."""
        if text.endswith(RANDOM_SUFFIX):
            preset = text.removesuffix(RANDOM_SUFFIX)
            if preset not in PRESETS:
                raise ConfigError(
                    f"no preset is named {preset!r}{did_you_mean(preset, PRESETS)}; the presets are "
                    f"{', '.join(PRESETS)}"
                )
            count = count_parameters(PRESETS[preset]).total
            if count > MAX_RANDOM_PARAMETERS:
                raise ConfigError(
                    f"{text} has {count:,} parameters; expected at most {MAX_RANDOM_PARAMETERS:,} random ones, such as "
                    f"tiny{RANDOM_SUFFIX}"
                )
            return cls(folder=None, preset=preset)
        folder = Path(text)
        if not folder.is_dir():
            near = did_you_mean(text, [preset + RANDOM_SUFFIX for preset in PRESETS])
            raise ConfigError(
                f"model is {text!r}, and there is no such folder; expected a run such as runs/nano (chogori train nano "
                f"makes it), a Hugging Face folder, or a preset with random weights such as tiny{RANDOM_SUFFIX}{near}"
            )
        return cls(folder=folder, preset=None)

    @property
    def short(self) -> str:
        """What clients call the model."""
        return self.preset or (self.folder or Path()).resolve().name

    def sizes(self, context_length: int | None) -> K2Config:
        """The model's sizes, with another longest context where one is asked for.

        Raises ConfigError for a context that the weights were not made for.
        """
        if self.folder is None:
            config = K2Config.preset(self.short)
        elif is_weight_folder(self.folder):
            config = from_hf(read_json(self.folder / CONFIG_FILE))
        else:
            config = RunFolder.open(self.folder).load_config().model
        if context_length is None:
            return config
        if self.folder is not None and context_length > config.max_position_embeddings:
            raise ConfigError(
                f"context_length is {context_length}; the model was made for {config.max_position_embeddings} tokens "
                "(only random weights can be read further)"
            )
        return config.replace(max_position_embeddings=context_length)


def is_weight_folder(folder: Path) -> bool:
    """Whether `folder` is a Hugging Face folder rather than a run."""
    return any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE))


class LocalBackend:
    """The built-in engine over a model on this machine, as the server's backend. Loads torch when it starts.

    Args:
        name: which model.
        sizes: its sizes, from `ModelName.sizes`.
        config: the engine's settings.
    """

    def __init__(self, name: ModelName, sizes: K2Config, config: EngineConfig) -> None:
        self._name, self._sizes, self._config = name, sizes, config
        self._card = ModelCard(
            id=name.short,
            created=int(time.time()),
            owned_by="chogori",
            context_length=sizes.max_position_embeddings,
            has_kimi_k2_sizes=_has_kimi_k2_sizes(sizes),
        )
        self._completer: EngineCompleter | None = None

    @property
    def models(self) -> Sequence[ModelCard]:
        """The one model."""
        return (self._card,)

    @property
    def completer(self) -> Completer:
        """Raises BackendError before `start` is done."""
        return self._started()

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the rendered prompt."""
        return self._started().count_tokens(request)

    def count_text(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self._started().tokenizer.encode(text))

    def count_prefix(self, request: ChatRequest) -> int:
        """Tokens of a conversation's beginning."""
        return self._started().count_prefix(request)

    async def pin_prefix(self, request: ChatRequest) -> PinnedPrefix:
        """Keep a conversation's beginning in the engine's cache. Raises what `EngineCompleter.pin` does."""
        return await self._started().pin(request)

    def gauges(self) -> Gauges:
        """How busy the engine is."""
        if self._completer is None:
            return Gauges()
        state = self._completer.engine.state()
        return Gauges(
            running=state.running,
            waiting=state.waiting,
            cache_tokens_used=state.cache_tokens_used,
            cache_tokens_total=state.cache_tokens_total,
            extra={
                "cache_tokens_kept": state.cache_tokens_kept,
                "cache_tokens_pinned": state.cache_tokens_pinned,
                "steps": state.steps,
            },
        )

    async def start(self) -> None:
        """Load the weights and start the engine's thread."""
        self._completer = await asyncio.to_thread(load_completer, self._name, self._sizes, self._config)

    async def stop(self) -> None:
        """End the engine's thread."""
        if self._completer is not None:
            await asyncio.to_thread(self._completer.engine.stop)

    def _started(self) -> EngineCompleter:
        if self._completer is None:
            raise BackendError("the model is not loaded yet")
        return self._completer


def _has_kimi_k2_sizes(sizes: K2Config) -> bool:
    """Whether a model's tensors have Kimi K2's shapes, whatever its context and how it was trained."""
    official = K2Config.preset("kimi-k2")
    return all(getattr(sizes, name) == getattr(official, name) for name in SIZES)


def load_completer(name: ModelName, sizes: K2Config, config: EngineConfig) -> EngineCompleter:
    """Load a model and its tokenizer, and start an engine over them; the caller stops `completer.engine`."""
    # Lazily: these load torch, and `chogori serve` refuses what cannot be before that.
    import torch

    from chogori.engine.completer import EngineCompleter
    from chogori.engine.engine import Engine
    from chogori.engine.forward import ServedModel
    from chogori.engine.vocabulary import Vocabulary

    # More threads than cores wait for each other in every small operation: 0.7 s of a start, on busy cores.
    torch.set_num_threads(config.threads)
    model, tokenizer = _load(name, sizes)
    model.config = sizes
    vocabulary = Vocabulary(tokenizer, sizes.vocab_size)
    engine = Engine(ServedModel(model), vocabulary.end_ids, config)
    engine.start()
    return EngineCompleter(engine, vocabulary)


def _load(name: ModelName, sizes: K2Config) -> tuple[K2Model, Tokenizer]:
    import torch

    from chogori.model.transformer import K2Model
    from chogori.train.machine import has_bfloat16_units, resolve_device
    from chogori.train.saved_run import open_run

    device = resolve_device("auto")
    dtype = torch.bfloat16 if has_bfloat16_units(device) else torch.float32
    if name.folder is None:
        tokenizer = Tokenizer.train(SAMPLES.values(), vocab_size=min(sizes.vocab_size, RANDOM_VOCABULARY))
        model = K2Model(sizes, seed=0).to(device)
    elif is_weight_folder(name.folder):
        tokenizer = Tokenizer.load(name.folder)
        model = K2Model.from_pretrained(name.folder, dtype=dtype, device=device)
    else:
        run = open_run(name.folder)
        return run.model, run.tokenizer
    model.compute_dtype = dtype
    return model.eval(), tokenizer
