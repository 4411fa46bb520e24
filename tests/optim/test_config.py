import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from chogori.errors import ConfigError
from chogori.optim.config import MuonClipConfig, NewtonSchulzConfig, QKClipConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 3}, "optim.lr is 3; expected below 1; did you mean 3e-4?"),
        ({"lr": 25.0}, "optim.lr is 25; expected below 1; did you mean 2.5e-4?"),
        ({"lr": -1e-3}, "optim.lr is -0.001; expected 0 or a small positive number such as 2e-4"),
        ({"lr": float("nan")}, "optim.lr is nan; expected 0 or a small positive number such as 2e-4"),
        ({"weight_decay": -0.1}, "optim.weight_decay is -0.1; expected 0 or more, such as 0.1"),
        ({"momentum": 1.0}, "optim.momentum is 1; expected at least 0 and below 1"),
        ({"betas": (0.9, 1.5)}, "optim.betas[1] is 1.5; expected at least 0 and below 1"),
        ({"betas": (0.9,)}, "optim.betas has 1 numbers; expected two, such as (0.9, 0.95)"),
        ({"eps": 0.0}, "optim.eps is 0; expected above 0, such as 1e-8"),
        ({"stack_bytes": 0}, "optim.stack_bytes is 0; expected at least 1, or None to choose by device"),
        ({"optimizer": "sgd"}, "optim.optimizer is 'sgd'; expected one of muonclip, muon, adamw"),
    ],
)
def test_impossible_hyperparameters_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MuonClipConfig(**change)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"coefficients": "cubic"},
            "optim.newton_schulz.coefficients is 'cubic'; expected one of quintic, polar_express",
        ),
        ({"steps": 0}, "optim.newton_schulz.steps is 0; expected 1 to 20 (5 is usual)"),
        ({"dtype": "float16"}, "optim.newton_schulz.dtype is 'float16'; expected one of auto, bfloat16, float32"),
        ({"eps": 0.0}, "optim.newton_schulz.eps is 0; expected above 0, such as 1e-7"),
    ],
)
def test_impossible_iterations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        NewtonSchulzConfig(**change)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, "optim.qk_clip.threshold is 0; expected above 0, such as 100"),
        ({"threshold": float("inf")}, "optim.qk_clip.threshold is inf; expected above 0, such as 100"),
        ({"alpha": 1.5}, "optim.qk_clip.alpha is 1.5; expected 0 to 1 (0.5 shares equally)"),
        ({"form": "global"}, "optim.qk_clip.form is 'global'; expected one of per_head, layer"),
    ],
)
def test_impossible_clips_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        QKClipConfig(**change)
    assert str(error.value) == message


def test_defaults_are_those_of_kimi_k2() -> None:
    config = MuonClipConfig()
    assert (config.lr, config.weight_decay, config.momentum) == (2e-4, 0.1, 0.95)
    assert (config.qk_clip.threshold, config.qk_clip.alpha, config.qk_clip.form) == (100.0, 0.5, "per_head")
    assert (config.newton_schulz.coefficients, config.newton_schulz.steps) == ("quintic", 5)
    assert dataclasses.replace(config, lr=1e-3).lr == 1e-3


def test_importing_the_configuration_and_schedules_loads_no_torch() -> None:
    code = (
        "import sys, chogori.optim, chogori.optim.config; chogori.optim.WSD; chogori.optim.MuonClipConfig; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
