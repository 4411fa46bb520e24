"""What the optimizer can be told, as frozen records. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from chogori.errors import ConfigError

Coefficients = Literal["quintic", "polar_express"]
WorkingType = Literal["auto", "bfloat16", "float32"]
ClipForm = Literal["per_head", "layer"]
OptimizerKind = Literal["muonclip", "muon", "adamw"]


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def check_learning_rate(name: str, lr: float) -> None:
    """Refuse a learning rate that is negative, not finite or 1 and above.

    Raises ConfigError naming `name`, with the power of ten that was probably meant.
    """
    if not math.isfinite(lr) or lr < 0:
        raise ConfigError(f"{name} is {lr:g}; expected 0 or a small positive number such as 2e-4")
    if lr >= 1:
        mantissa = lr / 10 ** math.floor(math.log10(lr))
        raise ConfigError(f"{name} is {lr:g}; expected below 1; did you mean {mantissa:g}e-4?")


def check_share(name: str, value: float) -> None:
    """Refuse a factor outside [0, 1), such as a momentum. Raises ConfigError naming `name`."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value:g}; expected at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class NewtonSchulzConfig:
    """The iteration that replaces the singular values of an update by about 1."""

    coefficients: Coefficients = "quintic"
    """"quintic" is Muon's (3.4445, −4.7750, 2.0315) at every step, as in K2; "polar_express" the optimal sequence of
    arXiv 2505.16932, which ends nearer to 1."""
    steps: int = 5
    """Iterations; each costs three batched matrix products."""
    dtype: WorkingType = "auto"
    """Type of the products. "auto" is bfloat16 where the processor multiplies it natively, else float32."""
    eps: float = 1e-7
    """A matrix whose Frobenius norm is below this is not blown up to unit norm (as in Muon)."""

    def __post_init__(self) -> None:
        _require_choice("optim.newton_schulz.coefficients", self.coefficients, get_args(Coefficients))
        _require_choice("optim.newton_schulz.dtype", self.dtype, get_args(WorkingType))
        if not 1 <= self.steps <= 20:
            raise ConfigError(f"optim.newton_schulz.steps is {self.steps}; expected 1 to 20 (5 is usual)")
        if not self.eps > 0:
            raise ConfigError(f"optim.newton_schulz.eps is {self.eps:g}; expected above 0, such as 1e-7")


@dataclass(frozen=True, kw_only=True)
class QKClipConfig:
    """QK-Clip: query and key weights shrink after a step in which an attention logit passed the threshold."""

    threshold: float = 100.0
    """τ, the largest attention logit q·k·scale that is left alone (100 in Kimi K2's training)."""
    alpha: float = 0.5
    """Share of the shrinking that the query side takes; the key side takes the rest."""
    form: ClipForm = "per_head"
    """"per_head" is the K2 report's; "layer" the form of the first publication, one factor for all heads of a layer."""
    exact: bool = True
    """Find the exact maximum of each head that log-sum-exp screening cannot clear. False clips by the log-sum-exp
    itself, at most ln(keys) too strongly, and keeps no queries and keys alive until the step."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ConfigError(f"optim.qk_clip.threshold is {self.threshold:g}; expected above 0, such as 100")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"optim.qk_clip.alpha is {self.alpha:g}; expected 0 to 1 (0.5 shares equally)")
        _require_choice("optim.qk_clip.form", self.form, get_args(ClipForm))


@dataclass(frozen=True, kw_only=True)
class MuonClipConfig:
    """One optimizer for a whole model. Defaults are Kimi K2's."""

    optimizer: OptimizerKind = "muonclip"
    """"muonclip" is Muon with QK-Clip, "muon" the same without it, "adamw" AdamW for every parameter."""
    lr: float = 2e-4
    """Learning rate at schedule multiplier 1, for matrices and the rest alike (0.2·√max(n, m) matches their scale)."""
    weight_decay: float = 0.1
    """Decoupled decay λ of everything but vectors (norms and biases)."""
    momentum: float = 0.95
    """μ of Muon."""
    nesterov: bool = True
    """Orthogonalise G + μM rather than M."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    """AdamW's guard against division by zero."""
    qk_clip: QKClipConfig = field(default_factory=QKClipConfig)
    """Used when `optimizer` is "muonclip"."""
    newton_schulz: NewtonSchulzConfig = field(default_factory=NewtonSchulzConfig)
    """How matrices are orthogonalised."""
    per_head: bool = False
    """Orthogonalise attention matrices head by head instead of whole (K2 does whole matrices)."""
    stack_bytes: int | None = None
    """Most bytes of same-shaped matrices worked on at once; None chooses by device. One matrix always fits."""

    def __post_init__(self) -> None:
        _require_choice("optim.optimizer", self.optimizer, get_args(OptimizerKind))
        check_learning_rate("optim.lr", self.lr)
        check_hyperparameters(
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            betas=self.betas,
            eps=self.eps,
            stack_bytes=self.stack_bytes,
        )


def check_hyperparameters(
    *,
    weight_decay: float,
    momentum: float,
    betas: tuple[float, float],
    eps: float,
    stack_bytes: int | None,
) -> None:
    """Validation shared by the record and the optimizer. Raises ConfigError naming the field."""
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ConfigError(f"optim.weight_decay is {weight_decay:g}; expected 0 or more, such as 0.1")
    check_share("optim.momentum", momentum)
    if len(betas) != 2:
        raise ConfigError(f"optim.betas has {len(betas)} numbers; expected two, such as (0.9, 0.95)")
    check_share("optim.betas[0]", betas[0])
    check_share("optim.betas[1]", betas[1])
    if not eps > 0:
        raise ConfigError(f"optim.eps is {eps:g}; expected above 0, such as 1e-8")
    if stack_bytes is not None and stack_bytes < 1:
        raise ConfigError(f"optim.stack_bytes is {stack_bytes}; expected at least 1, or None to choose by device")
