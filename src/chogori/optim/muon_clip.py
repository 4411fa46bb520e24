"""MuonClip: Muon for matrices, AdamW for the rest, QK-Clip after each step, in one optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from chogori.errors import CheckpointError, ConfigError
from chogori.optim.attention_adapters import AttentionProbe
from chogori.optim.config import (
    MuonClipConfig,
    NewtonSchulzConfig,
    QKClipConfig,
    check_hyperparameters,
    check_learning_rate,
)
from chogori.optim.layout import MatrixLayout
from chogori.optim.muon import Matrices, matrices_of, muon_update
from chogori.optim.newton_schulz import Workspace
from chogori.optim.parameters import ParameterRole, assign_roles, describe_roles, role_by_name
from chogori.optim.qk_clip import ClipReport, QKClip
from chogori.optim.sharded import is_sharded, own_part, own_part_of, whole

ParameterGroups = Iterable[dict[str, Any]] | Iterable[tuple[str, nn.Parameter]]


class MuonClip(torch.optim.Optimizer):
    """The optimizer of Kimi K2 (report, §2.1) for any PyTorch model.

    `MuonClip(model)` decides by `assign_roles` which parameter goes where; `describe()` prints it. Instead of a model
    it takes `model.named_parameters()`, or a list of parameter groups `{"params": …, "use_muon": True, …}`, each with
    options of its own (`lr`, `weight_decay`, and for fused matrices `row_splits`, the heights of the matrices that lie
    on top of each other). Without a model there is no attention to find, so `qk_clip` must be None, or an
    `AttentionProbe` of the model.

    State: `momentum_buffer` (float32, the parameter's shape) for Muon; `step`, `exp_avg`, `exp_avg_sq` for AdamW.

    Departures from the report: vectors (norms, biases) are not decayed, as is usual; for QK-Clip's, see `qk_clip`.

    Raises ConfigError for hyperparameters, parameters or attention layers that cannot be.
    """

    def __init__(
        self,
        model_or_param_groups: nn.Module | ParameterGroups,
        lr: float = 2e-4,
        weight_decay: float = 0.1,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        qk_clip: float | QKClipConfig | None = 100.0,
        newton_schulz: NewtonSchulzConfig | None = None,
        per_head: bool = False,
        stack_bytes: int | None = None,
        attention: AttentionProbe | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """`attention` is an existing probe to clip by (needed with parameter groups); `process_group` the ranks that
        share maxima of logits (None: all), which must hold the same layers."""
        check_learning_rate("optim.lr", lr)
        check_hyperparameters(
            weight_decay=weight_decay, momentum=momentum, betas=betas, eps=eps, stack_bytes=stack_bytes
        )
        self.newton_schulz = newton_schulz or NewtonSchulzConfig()
        self.stack_bytes = stack_bytes
        self._workspace = Workspace()
        self._roles: dict[nn.Parameter, ParameterRole] = {}
        self._report: ClipReport | None = None
        self._warned_unobserved = False
        defaults: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "betas": tuple(betas),
            "eps": eps,
        }
        super().__init__(self._groups(model_or_param_groups, weight_decay, per_head), defaults)
        self._probe = attention
        self._clip: QKClip | None = None
        if qk_clip is not None:
            config = qk_clip if isinstance(qk_clip, QKClipConfig) else QKClipConfig(threshold=float(qk_clip))
            self._clip = self._build_clip(model_or_param_groups, config, process_group)

    @classmethod
    def from_config(cls, model: nn.Module, config: MuonClipConfig) -> MuonClip:
        """The optimizer that `config` describes; "adamw" is `build_optimizer`'s."""
        return cls(
            model,
            config.lr,
            config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            betas=config.betas,
            eps=config.eps,
            qk_clip=config.qk_clip if config.optimizer == "muonclip" else None,
            newton_schulz=config.newton_schulz,
            per_head=config.per_head,
            stack_bytes=config.stack_bytes,
        )

    # Construction

    def _groups(self, given: nn.Module | ParameterGroups, weight_decay: float, per_head: bool) -> list[dict[str, Any]]:
        if isinstance(given, nn.Module):
            return self._groups_of(assign_roles(given, per_head=per_head), weight_decay)
        if per_head:
            raise ConfigError("per_head needs the model to know its heads; pass the model instead of its parameters")
        items = list(cast("Iterable[object]", given))
        if items and all(isinstance(item, dict) for item in items):
            return [self._checked_group(cast("dict[str, Any]", item)) for item in items]
        if items and all(isinstance(item, tuple) for item in items):
            named = cast("list[tuple[str, nn.Parameter]]", items)
            return self._groups_of([role_by_name(*pair) for pair in named if pair[1].requires_grad], weight_decay)
        raise ConfigError(
            "MuonClip cannot tell embeddings from matrices in a plain list of parameters; pass the model, "
            'model.named_parameters(), or groups such as {"params": [...], "use_muon": True}'
        )

    def _groups_of(self, roles: Sequence[ParameterRole], weight_decay: float) -> list[dict[str, Any]]:
        self._roles = {role.parameter: role for role in roles}
        groups: list[dict[str, Any]] = []
        for use_muon, decayed in ((True, True), (False, True), (False, False)):
            chosen = [role for role in roles if (role.update == "muon", role.decayed) == (use_muon, decayed)]
            if chosen:
                named = [(role.name, role.parameter) for role in chosen]
                groups.append({"params": named, "use_muon": use_muon, "weight_decay": weight_decay if decayed else 0.0})
        return groups

    def _checked_group(self, group: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(group.get("use_muon"), bool):
            raise ConfigError(
                f"a parameter group has use_muon {group.get('use_muon')!r}; expected True (Muon, matrices) or False "
                "(AdamW)"
            )
        if "lr" in group:
            check_learning_rate("optim.lr of a parameter group", float(group["lr"]))
        params = group["params"]
        params = cast(
            "list[nn.Parameter | tuple[str, nn.Parameter]]", [params] if isinstance(params, Tensor) else list(params)
        )
        layout = MatrixLayout(row_splits=tuple(group.get("row_splits") or ()))
        for index, item in enumerate(params):
            name, parameter = item if isinstance(item, tuple) else (f"group parameter {index}", item)
            if group["use_muon"]:
                if parameter.ndim < 2:
                    raise ConfigError(
                        f"parameter {name} has shape {tuple(parameter.shape)}; Muon updates matrices. Put it in "
                        "a group with use_muon False"
                    )
                layout.check(name, parameter.shape)
            self._roles[parameter] = ParameterRole(
                name=name,
                parameter=parameter,
                update="muon" if group["use_muon"] else "adamw",
                decayed=group.get("weight_decay", 1) != 0,
                reason="as given",
                layout=layout,
            )
        return {**group, "params": params}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; the group must say `use_muon`. Raises ConfigError otherwise."""
        if hasattr(self, "_clip"):  # Groups of the constructor are checked already.
            param_group = self._checked_group(param_group)
        super().add_param_group(param_group)

    def _build_clip(
        self,
        given: nn.Module | ParameterGroups,
        config: QKClipConfig,
        process_group: dist.ProcessGroup | None,
    ) -> QKClip:
        if self._probe is None:
            if not isinstance(given, nn.Module):
                raise ConfigError(
                    "QK-Clip needs the attention layers, which parameters alone do not tell; pass the model, or "
                    "attention=AttentionProbe(model), or qk_clip=None for Muon without it"
                )
            self._probe = AttentionProbe(given, threshold=config.threshold, exact=config.exact)
        return QKClip(self._probe.layers, self._probe.monitor, config, process_group=process_group)

    # Use

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient, then clip by the logits observed since the last step.

        Raises NonFiniteError, before any weight changes, when an attention logit was NaN or infinite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        measured = self._clip.measure() if self._clip is not None else None
        for group in self.param_groups:
            if group["use_muon"]:
                self._muon(group)
            else:
                self._adamw(group)
        if self._clip is not None:
            self._report = self._clip.apply(measured)
            self._warn_if_unobserved(self._report)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        matrices: list[Matrices] = []
        apart: list[tuple[nn.Parameter, Tensor]] = []
        for parameter in cast("list[nn.Parameter]", group["params"]):
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(
                    parameter, dtype=torch.float32, memory_format=torch.preserve_format
                )
            buffer = state["momentum_buffer"]
            if is_sharded(parameter) or not (parameter.is_contiguous() and buffer.is_contiguous()):
                apart.append((parameter, gradient))
            else:
                layout = self._roles[parameter].layout
                matrices += matrices_of(parameter, gradient.contiguous(), buffer, layout)
        options = {
            "lr": float(group["lr"]),
            "weight_decay": float(group["weight_decay"]),
            "momentum": float(group["momentum"]),
            "nesterov": bool(group["nesterov"]),
        }
        self._update(matrices, options)
        for parameter, gradient in apart:
            self._update_copy(parameter, gradient, options)

    def _update(self, matrices: Sequence[Matrices], options: dict[str, Any]) -> None:
        muon_update(
            matrices,
            **options,
            newton_schulz=self.newton_schulz,
            stack_bytes=self.stack_bytes,
            workspace=self._workspace,
        )

    def _update_copy(self, parameter: nn.Parameter, gradient: Tensor, options: dict[str, Any]) -> None:
        """For parameters whose matrices are no views: sharded ones (each rank gathers the whole, updates it and keeps
        its own part), and those not contiguous in memory, such as convolutions in channels-last order."""
        buffer = self.state[parameter]["momentum_buffer"]
        copies = [whole(tensor.detach()).clone(memory_format=torch.contiguous_format) for tensor in (parameter, buffer)]
        weight, momentum = copies
        layout = self._roles[parameter].layout
        self._update(matrices_of(weight, whole(gradient).contiguous(), momentum, layout), options)
        own_part(parameter).copy_(own_part_of(weight, parameter))
        own_part(buffer).copy_(own_part_of(momentum, parameter))

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=own_part(parameter).device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if not parameters:
            return
        states = [self.state[parameter] for parameter in parameters]
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [cast(Tensor, parameter.grad) for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _warn_if_unobserved(self, report: ClipReport) -> None:
        silent = [layer.name for layer in report.layers if bool((layer.bound_H == -torch.inf).all())]
        if silent and not self._warned_unobserved:
            self._warned_unobserved = True
            warnings.warn(
                f"QK-Clip saw no logits of {silent[0]}{f' and {len(silent) - 1} more layers' if silent[1:] else ''} "
                "in this step and left them alone; was the model in training mode, and its attention implementation "
                "unchanged since the optimizer was made?",
                stacklevel=3,
            )

    # Insight

    @property
    def clip_report(self) -> ClipReport | None:
        """What QK-Clip found and did in the last step; None before the first and without QK-Clip."""
        return self._report

    def last_max_logits(self) -> dict[str, float]:
        """Per attention layer, the largest logit of the last step (an upper bound for layers under the threshold)."""
        return {layer.name: layer.max_logit for layer in self._report.layers} if self._report else {}

    def describe(self) -> str:
        """A table of which parameter goes where and why, and what is clipped."""
        lines = [describe_roles(list(self._roles.values()))]
        if self._clip is None:
            lines.append("qk-clip: off")
        else:
            config = self._clip.config
            kinds = sorted({type(layer).__name__ for layer in self._clip.layers})
            lines.append(
                f"qk-clip: {config.form}, threshold {config.threshold:g}, alpha {config.alpha:g}, "
                f"{len(self._clip.layers)} layers ({', '.join(kinds)})"
            )
        return "\n".join(lines)

    def close(self) -> None:
        """Stop observing attention and give transformers models back their attention implementation."""
        if self._probe is not None:
            self._probe.close()
        self._clip = None

    # Checkpoints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict`, bit-exactly.

        Raises CheckpointError when the state is of other parameters.
        """
        self._check_state(state_dict)
        super().load_state_dict(state_dict)
        # torch casts loaded state to the parameter's type; momenta of bfloat16 parameters are float32 and stay so.
        for parameter, index in zip(self._parameters(), self._indices(state_dict), strict=True):
            saved = cast("dict[str, Any]", state_dict["state"].get(index, {})).get("momentum_buffer")
            if saved is not None and parameter.dtype is not torch.float32:
                self.state[parameter]["momentum_buffer"] = saved.detach().to(parameter.device, torch.float32, copy=True)

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]

    @staticmethod
    def _indices(state_dict: dict[str, Any]) -> list[Any]:
        return [index for group in state_dict["param_groups"] for index in group["params"]]

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        if not {"state", "param_groups"} <= state_dict.keys():
            raise CheckpointError(
                f"the optimizer state holds {', '.join(map(str, state_dict)) or 'nothing'}; expected what "
                "MuonClip.state_dict() returns, with state and param_groups"
            )
        ours = [(len(group["params"]), group["use_muon"]) for group in self.param_groups]
        saved = [(len(group["params"]), group.get("use_muon")) for group in state_dict["param_groups"]]
        if ours != saved:
            raise CheckpointError(
                f"the optimizer state has groups of (parameters, use_muon) {saved}; this model has {ours}. Was it "
                "saved by another optimizer, or for another model?"
            )
        for parameter, index in zip(self._parameters(), self._indices(state_dict), strict=True):
            for key, value in cast("dict[str, Any]", state_dict["state"].get(index, {})).items():
                if key != "step" and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"{key} of parameter {self._roles[parameter].name} has shape {tuple(value.shape)} in the "
                        f"optimizer state; expected {tuple(parameter.shape)}. Was it saved for another model?"
                    )


def build_optimizer(model: nn.Module, config: MuonClipConfig) -> torch.optim.Optimizer:
    """The optimizer that `config.optimizer` names, for all parameters of `model`.

    For "adamw" it is torch's, with the same division into decayed and undecayed parameters as MuonClip.
    """
    if config.optimizer != "adamw":
        return MuonClip.from_config(model, config)
    roles = assign_roles(model)
    groups = [
        {
            "params": [(role.name, role.parameter) for role in roles if role.decayed is decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )
