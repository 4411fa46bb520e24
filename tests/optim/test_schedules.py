import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chogori.errors import ConfigError
from chogori.optim import WSD, Cosine, MuonClip
from chogori.optim.schedules import DecayShape


def test_kimi_k2_schedule() -> None:
    # Report, §2.5: 500 steps of warm-up, constant, then cosine from 2e-4 to 2e-5.
    schedule = WSD(stable_steps=1000, decay_steps=500)
    assert schedule(0) == pytest.approx(1 / 501)
    assert schedule(499) == pytest.approx(500 / 501)
    assert schedule(500) == schedule(1499) == 1.0
    assert schedule(1500) == 1.0
    assert schedule(1750) == pytest.approx(0.55)
    assert schedule(2000) == schedule(10**9) == pytest.approx(0.1)
    assert schedule.total_steps == 2000


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.5), ("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_shapes_of_the_fall(shape: DecayShape, middle: float) -> None:
    schedule = WSD(warmup_steps=0, stable_steps=0, decay_steps=10, final_ratio=0.0, shape=shape)
    assert schedule(0) == 1.0
    assert schedule(5) == pytest.approx(middle)
    assert schedule(10) == 0.0


@given(
    warmup=st.integers(0, 20),
    stable=st.integers(0, 20),
    decay=st.integers(0, 20),
    final=st.floats(0, 1),
    shape=st.sampled_from(["cosine", "linear", "sqrt"]),
)
def test_wsd_rises_stays_and_falls_within_bounds(
    warmup: int, stable: int, decay: int, final: float, shape: DecayShape
) -> None:
    schedule = WSD(warmup_steps=warmup, stable_steps=stable, decay_steps=decay, final_ratio=final, shape=shape)
    values = [schedule(step) for step in range(schedule.total_steps + 2)]
    peak = warmup + stable
    assert all(left < right for left, right in itertools.pairwise(values[:warmup]))
    assert all(value == 1.0 for value in values[warmup:peak])
    assert all(left >= right for left, right in itertools.pairwise(values[peak:]))
    assert all(0 <= value <= 1 for value in values)
    assert values[-1] == final


def test_cosine() -> None:
    schedule = Cosine(warmup_steps=10, total_steps=110, final_ratio=0.2)
    assert schedule(0) == pytest.approx(1 / 11)
    assert schedule(10) == 1.0
    assert schedule(60) == pytest.approx(0.6)
    assert schedule(110) == schedule(500) == pytest.approx(0.2)


def test_torch_schedulers_drive_the_optimizer() -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = MuonClip(model, lr=0.01, qk_clip=None)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, WSD(warmup_steps=1, stable_steps=1, decay_steps=2))
    rates: list[float] = []
    moved: list[float] = []
    for _ in range(4):
        before = model.weight.detach().clone()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        moved.append(float((model.weight.detach() - before).norm()))
        scheduler.step()
        optimizer.zero_grad()
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.0055])
    # The direction repeats (the same gradient each time), so that the way moved follows the rate.
    assert moved[1] / moved[0] == pytest.approx(2, rel=0.05)
    assert moved[3] / moved[2] == pytest.approx(0.55, rel=0.05)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=4, cycle_momentum=False)
    optimizer.step()
    one_cycle.step()


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.decay_steps is -1; expected 0 or more steps"):
        WSD(stable_steps=1, decay_steps=-1)
    with pytest.raises(ConfigError, match=r"schedule\.final_ratio is 2; expected 0 to 1"):
        WSD(stable_steps=1, decay_steps=1, final_ratio=2)
    with pytest.raises(ConfigError, match=r"schedule\.shape is 'steep'; expected one of cosine, linear, sqrt"):
        WSD(stable_steps=1, decay_steps=1, shape="steep")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps is 5, above schedule\.total_steps = 3"):
        Cosine(warmup_steps=5, total_steps=3)
