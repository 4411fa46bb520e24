"""Finds the attention layers of a model, tells QK-Clip which rows of which weights are a head's, and has their logits
observed.

Layers are recognised by the names of their projections, so our own latent attention and transformers' DeepSeek-V3,
Llama, Qwen3, Mistral and their like need nothing but this module. A layer reports its logits in one of two ways: it
has an attribute `logit_observer` and calls it (see `LayerObserver`), or it dispatches through transformers'
ALL_ATTENTION_FUNCTIONS, where `AttentionProbe` registers an implementation that does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from chogori.errors import ConfigError
from chogori.optim.lse_attention import lse_attention
from chogori.optim.observation import AttentionLogitMonitor, LayerObserver
from chogori.optim.qk_clip import ClippableAttention, RowFactors

IMPLEMENTATION = "chogori_observed"
"""Name under which the observed attention is registered in transformers."""


@dataclass(frozen=True, eq=False)
class LatentAttention:
    """Multi-head latent attention; the rotary part of queries and keys lies last in each head."""

    name: str
    num_heads: int
    nope_head_dim: int
    rope_head_dim: int
    query: nn.Linear
    key_value: nn.Linear
    latent: nn.Linear

    def per_head(self, gamma_H: Tensor, alpha: float) -> list[RowFactors]:
        """See `ClippableAttention`: the shared rotary key stays, so the rotary query takes all of gamma."""
        return self._factors(gamma_H**alpha, gamma_H, gamma_H ** (1 - alpha))

    def layer_wide(self, eta: float, alpha: float) -> list[RowFactors]:
        """See `ClippableAttention`: here the shared rotary key takes its share too."""
        q_H = torch.full((self.num_heads,), eta**alpha, dtype=torch.float64)
        factors = self._factors(q_H, q_H, torch.full_like(q_H, eta ** (1 - alpha)))
        latent_R = torch.ones(self.latent.out_features, dtype=torch.float64)
        latent_R[-self.rope_head_dim :] = eta ** (1 - alpha)
        return factors + _rows(self.latent, latent_R)

    def _factors(self, q_nope_H: Tensor, q_rope_H: Tensor, k_nope_H: Tensor) -> list[RowFactors]:
        widths = torch.tensor([self.nope_head_dim, self.rope_head_dim])
        q_R = torch.stack((q_nope_H, q_rope_H), dim=1).repeat_interleave(widths, dim=1).flatten()
        height = self.key_value.out_features // self.num_heads
        k_HR = torch.ones(self.num_heads, height, dtype=k_nope_H.dtype)
        k_HR[:, : self.nope_head_dim] = k_nope_H[:, None]
        return _rows(self.query, q_R) + _rows(self.key_value, k_HR.flatten())


@dataclass(frozen=True, eq=False)
class GroupedAttention:
    """Multi-head attention, or grouped-query attention where several query heads share a key head."""

    name: str
    num_heads: int
    num_key_heads: int
    query: nn.Linear
    key: nn.Linear

    def per_head(self, gamma_H: Tensor, alpha: float) -> list[RowFactors]:
        """See `ClippableAttention`: a shared key follows the head of its group that needs most."""
        gamma_GH = gamma_H.view(self.num_key_heads, -1)
        key_G = gamma_GH.amin(dim=1) ** (1 - alpha)
        return self._factors((gamma_GH / key_G[:, None]).flatten(), key_G)

    def layer_wide(self, eta: float, alpha: float) -> list[RowFactors]:
        """See `ClippableAttention`."""
        return self._factors(
            torch.full((self.num_heads,), eta**alpha, dtype=torch.float64),
            torch.full((self.num_key_heads,), eta ** (1 - alpha), dtype=torch.float64),
        )

    def _factors(self, q_H: Tensor, k_G: Tensor) -> list[RowFactors]:
        width = self.query.out_features // self.num_heads
        return _rows(self.query, q_H.repeat_interleave(width)) + _rows(self.key, k_G.repeat_interleave(width))


@dataclass(frozen=True, eq=False)
class NormedAttention:
    """Attention whose queries and keys are normalised after projection; only the norms' weights move the logits."""

    name: str
    num_heads: int
    query_norm: nn.Module
    key_norm: nn.Module

    def per_head(self, gamma_H: Tensor, alpha: float) -> list[RowFactors]:
        """Departs from `ClippableAttention`: heads share the norms, so all take the least gamma."""
        return self.layer_wide(float(gamma_H.min()), alpha)

    def layer_wide(self, eta: float, alpha: float) -> list[RowFactors]:
        """See `ClippableAttention`."""
        factors: list[RowFactors] = []
        for norm, factor in ((self.query_norm, eta**alpha), (self.key_norm, eta ** (1 - alpha))):
            for parameter in norm.parameters():
                factors.append(RowFactors(parameter, torch.full((parameter.shape[0],), factor, dtype=torch.float64)))
        return factors


def _rows(projection: nn.Linear, factor_R: Tensor) -> list[RowFactors]:
    parameters = projection.parameters(recurse=False)  # the weight, and the bias where there is one
    return [RowFactors(parameter, factor_R) for parameter in parameters]


def find_attention(model: nn.Module) -> list[tuple[nn.Module, ClippableAttention]]:
    """Every attention layer of `model` with its adapter, in the order of the model.

    Raises ConfigError when there is none, or one that QK-Clip cannot scale.
    """
    found: list[tuple[nn.Module, ClippableAttention]] = []
    suspects: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        adapter = _adapt(name, module)
        if adapter is not None:
            found.append((module, adapter))
        elif "attention" in type(module).__name__.lower():
            suspects.append((name, module))
    names = [adapter.name for _, adapter in found]
    for name, module in suspects:
        holds_or_lies_in = (f"{other}.".startswith(f"{name}.") or f"{name}.".startswith(f"{other}.") for other in names)
        if not any(holds_or_lies_in) and any(True for _ in module.parameters()):
            _refuse(name, module, "has no q_proj and k_proj, and no latent projections")
    if not found:
        raise ConfigError(
            f"QK-Clip found no attention layer in {type(model).__name__}; pass qk_clip=None to train without it"
        )
    return found


def _refuse(name: str, module: nn.Module, why: str) -> None:
    raise ConfigError(
        f"QK-Clip cannot scale the attention layer {name} ({type(module).__name__}): it {why}. Known are separate "
        "q_proj and k_proj (Llama, Qwen, Mistral) and latent attention (DeepSeek-V3, Kimi K2); pass qk_clip=None to "
        "train without QK-Clip"
    )


def _adapt(name: str, module: nn.Module) -> ClippableAttention | None:
    if getattr(module, "kv_b_proj", None) is not None and getattr(module, "kv_a_proj_with_mqa", None) is not None:
        return _adapt_latent(name, module)
    if getattr(module, "q_proj", None) is not None and getattr(module, "k_proj", None) is not None:
        return _adapt_grouped(name, module)
    return None


def _adapt_latent(name: str, module: nn.Module) -> LatentAttention:
    query = "q_b_proj" if getattr(module, "q_b_proj", None) is not None else "q_proj"
    _check_norms(name, module, known=("q_a_layernorm", "kv_a_layernorm"))
    return LatentAttention(
        name=name,
        num_heads=_integer(name, module, "num_heads"),
        nope_head_dim=_integer(name, module, "qk_nope_head_dim"),
        rope_head_dim=_integer(name, module, "qk_rope_head_dim"),
        query=_linear(name, module, query),
        key_value=_linear(name, module, "kv_b_proj"),
        latent=_linear(name, module, "kv_a_proj_with_mqa"),
    )


def _adapt_grouped(name: str, module: nn.Module) -> ClippableAttention:
    query, key = _linear(name, module, "q_proj"), _linear(name, module, "k_proj")
    head_dim = getattr(module, "head_dim", None)
    if not isinstance(head_dim, int):
        num_heads = getattr(module, "num_heads", None) or getattr(
            getattr(module, "config", None), "num_attention_heads", None
        )
        if not isinstance(num_heads, int):
            _refuse(name, module, "tells neither head_dim nor num_heads")
            raise AssertionError
        head_dim = query.out_features // num_heads
    num_heads, num_key_heads = query.out_features // head_dim, key.out_features // head_dim
    if query.out_features % head_dim or key.out_features % head_dim or num_heads % num_key_heads:
        _refuse(
            name,
            module,
            f"has {query.out_features} query and {key.out_features} key rows, which heads of {head_dim} do not divide",
        )
    for pair in (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm")):
        norms = [getattr(module, attribute, None) for attribute in pair]
        if all(isinstance(norm, nn.Module) and any(True for _ in norm.parameters()) for norm in norms):
            _check_norms(name, module, known=pair)
            for attribute, norm in zip(pair, cast("list[nn.Module]", norms), strict=True):
                if not _scales_with_its_weight(norm):
                    _refuse(name, module, f"has a norm {attribute} whose output does not scale with its weight")
            return NormedAttention(name, num_heads, *cast("list[nn.Module]", norms))
    _check_norms(name, module, known=())
    return GroupedAttention(name, num_heads, num_key_heads, query, key)


def _linear(name: str, module: nn.Module, attribute: str) -> nn.Linear:
    projection = getattr(module, attribute)
    if not isinstance(projection, nn.Linear) or not projection.weight.is_floating_point():
        _refuse(name, module, f"has a {attribute} that is no plain nn.Linear but {type(projection).__name__}")
    if not projection.weight.requires_grad:
        _refuse(name, module, f"has a frozen {attribute}, which QK-Clip would change")
    return projection


def _integer(name: str, module: nn.Module, attribute: str) -> int:
    value = getattr(module, attribute, None)
    if not isinstance(value, int):
        _refuse(name, module, f"does not tell {attribute}")
        raise AssertionError
    return value


def _check_norms(name: str, module: nn.Module, *, known: Sequence[str]) -> None:
    """Refuse a norm that might stand between a projection and the logits and undo a scaling."""
    for child_name, child in module.named_children():
        if "norm" in type(child).__name__.lower() and child_name not in known:
            _refuse(name, module, f"has a norm {child_name} that may undo a scaling of its projections")


def _scales_with_its_weight(norm: nn.Module) -> bool:
    """Whether doubled parameters double the output; a norm that computes (1 + weight)·x does not."""
    generator = torch.Generator().manual_seed(0)
    parameters = {key: torch.rand(value.shape, generator=generator) + 0.5 for key, value in norm.named_parameters()}
    x = torch.randn(2, *next(iter(parameters.values())).shape, generator=generator)
    with torch.no_grad():
        once = torch.func.functional_call(norm, parameters, (x,))
        twice = torch.func.functional_call(norm, {key: 2 * value for key, value in parameters.items()}, (x,))
    return bool(torch.allclose(twice, 2 * once, rtol=1e-3, atol=1e-5))


class AttentionProbe:
    """Observes the attention logits of a model in training forwards, from construction to `close`.

    Modules of transformers then run attention by the kernels of `lse_attention` instead of their configured
    implementation: the same mathematics ("sdpa" up to rounding). Forwards in evaluation mode are not touched.
    """

    def __init__(self, model: nn.Module, *, threshold: float | None = 100.0, exact: bool = True) -> None:
        """Raises ConfigError when `model` has no attention, or some that cannot be observed or scaled."""
        self.monitor = AttentionLogitMonitor(threshold=threshold, exact=exact)
        found = find_attention(model)
        self.layers: tuple[ClippableAttention, ...] = tuple(adapter for _, adapter in found)
        for module, adapter in found:
            _check_observable(adapter.name, module)
        self._modules = [module for module, _ in found]
        self._configs: list[tuple[Any, str | None]] = []
        for module, adapter in found:
            observer = self.monitor.observer(adapter.name, adapter.num_heads)
            cast(Any, module).logit_observer = observer
            if _dispatches_through_transformers(module):
                self._redirect(cast(Any, module).config)

    def _redirect(self, config: Any) -> None:
        if any(config is known for known, _ in self._configs):
            return
        _register()
        self._configs.append((config, config._attn_implementation))
        config._attn_implementation = IMPLEMENTATION

    def close(self) -> None:
        """Restore the model; observation ends."""
        for module in self._modules:
            cast(Any, module).logit_observer = None
        for config, implementation in self._configs:
            config._attn_implementation = implementation
        self._modules, self._configs = [], []

    def __enter__(self) -> AttentionProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _dispatches_through_transformers(module: nn.Module) -> bool:
    # Asked of the loaded module instead of importing transformers, which optim does not depend on.
    home = sys.modules.get(type(module).__module__)
    return hasattr(home, "ALL_ATTENTION_FUNCTIONS") and hasattr(module, "config")


def _check_observable(name: str, module: nn.Module) -> None:
    if getattr(module, "logit_observer", None) is not None:
        raise ConfigError(
            f"the attention layer {name} is observed already; close the other AttentionProbe or MuonClip of this model "
            "first"
        )
    if _dispatches_through_transformers(module):
        dropout = getattr(module, "attention_dropout", 0.0)
        if dropout:
            raise ConfigError(
                f"the attention layer {name} has attention_dropout {dropout:g}; expected 0, as no kernel returns the "
                "log-sum-exp of attention with dropout. Set it to 0 in the model's config, or pass qk_clip=None"
            )
    elif not hasattr(module, "logit_observer"):
        raise ConfigError(
            f"the attention layer {name} ({type(module).__name__}) does not report its logits. Give it an attribute "
            "logit_observer = None and, in training, call it when it is set as logit_observer(q, k, lse, scale, "
            "documents); or pass qk_clip=None"
        )


def _register() -> None:
    """Add the observed attention to transformers' tables, with the masks of its sdpa implementation."""
    masks = cast(Any, sys.modules["transformers.masking_utils"]).ALL_MASK_ATTENTION_FUNCTIONS
    functions = cast(Any, sys.modules["transformers.modeling_utils"]).ALL_ATTENTION_FUNCTIONS
    sdpa = functions["sdpa"]

    def observed_attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        observer = cast("LayerObserver | None", getattr(module, "logit_observer", None))
        if observer is None or not module.training:
            return sdpa(module, query, key, value, attention_mask, **options)
        return _observed_attention(observer, module, query, key, value, attention_mask, options), None

    cast("Callable[..., None]", functions.register)(IMPLEMENTATION, observed_attention)
    cast("Callable[..., None]", masks.register)(IMPLEMENTATION, masks["sdpa"])


def _observed_attention(
    observer: LayerObserver,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """transformers' contract: queries and keys [B, heads, T, d] in, values [B, T, heads, v] out."""
    for name in ("softcap", "position_bias", "s_aux", "dropout"):
        if options.get(name):
            raise ConfigError(
                f"the attention layer {observer.name} uses {name}, under which logits cannot be observed; pass "
                "qk_clip=None to train without QK-Clip"
            )
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    causal = bool(causal) and mask is None and query.shape[2] > 1
    if causal and key.shape[2] > query.shape[2]:
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    values, lse = lse_attention(query, key, value, scale=scale, mask_BHTS=mask, causal=causal)
    visible = mask if mask is None or mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min / 2
    observer(query, key, lse, scale, mask_BHTS=visible, causal=causal)
    return values.transpose(1, 2)
