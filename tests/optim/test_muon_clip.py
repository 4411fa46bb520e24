import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from chogori.errors import CheckpointError, ConfigError, NonFiniteError
from chogori.optim import AttentionProbe, MuonClip, MuonClipConfig, NewtonSchulzConfig, QKClipConfig, build_optimizer
from tests.optim import small_models
from tests.optim.small_models import loss_of, random_tokens

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": small_models.llama,
    "qwen3": small_models.qwen3,
    "deepseek_v3": small_models.deepseek_v3,
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses: list[float] = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, random_tokens(2, 12, step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_resumes_bit_exactly(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().to(dtype).train()
    optimizer = MuonClip(model, lr=0.01, qk_clip=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer, range(3))
    schedule.step()
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), schedule.state_dict()), file)
    expected_losses = train(model, optimizer, range(3, 6))
    expected = weights_of(model)
    report = optimizer.clip_report
    assert report is not None
    assert report.num_hot_heads > 0

    file.seek(0)
    model_state, optimizer_state, schedule_state = torch.load(file)
    torch.manual_seed(1)
    resumed = FAMILIES[family]().to(dtype).train()
    resumed.load_state_dict(model_state)
    other = MuonClip(resumed, lr=0.5, qk_clip=0.02)
    other_schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda step: 1 / (1 + step))
    other.load_state_dict(optimizer_state)
    other_schedule.load_state_dict(schedule_state)
    assert other.param_groups[0]["lr"] == 0.005
    assert train(resumed, other, range(3, 6)) == expected_losses
    for name, weight in weights_of(resumed).items():
        assert torch.equal(weight, expected[name]), name
    for state in other.state.values():
        if "momentum_buffer" in state:
            assert state["momentum_buffer"].dtype is torch.float32


def test_muon_and_adamw_parts_equal_torch_optimizers() -> None:
    torch.manual_seed(0)
    model = small_models.llama().train()
    twin = copy.deepcopy(model)
    ours = MuonClip(model, lr=0.01, weight_decay=0.1, qk_clip=None, newton_schulz=NewtonSchulzConfig(dtype="float32"))
    roles = {role.name: role for role in ours._roles.values()}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in twin.named_parameters():
        groups.setdefault((roles[name].update, roles[name].decayed), []).append(parameter)
    theirs = [
        torch.optim.Muon(groups["muon", True], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups["adamw", True], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), fused=True),
        torch.optim.AdamW(groups["adamw", False], lr=0.01, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]
    start = weights_of(model)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            other.grad = parameter.grad.clone()
        for optimizer in (ours, *theirs):
            optimizer.step()
        ours.zero_grad()
    for name, parameter in twin.named_parameters():
        mine, other = model.get_parameter(name).detach(), parameter.detach()
        if roles[name].update == "adamw":
            assert torch.equal(mine, other), name
        else:
            # torch orthogonalises in bfloat16: 1 to 3 % from the exact update.
            assert float((mine - other).norm() / (other - start[name]).norm()) < 0.04, name


def test_a_model_without_clip_and_one_far_below_the_threshold_train_alike() -> None:
    results: list[dict[str, Tensor]] = []
    for qk_clip in (None, 100.0):
        torch.manual_seed(0)
        model = small_models.deepseek_v3().train()
        model.set_attn_implementation("sdpa")
        train(model, MuonClip(model, lr=0.01, qk_clip=qk_clip), range(3))
        results.append(weights_of(model))
    for name, weight in results[0].items():
        # Observation changes the attention kernel (values padded to the width of queries), hence the last digits;
        # Newton-Schulz in bfloat16 makes 2^-8 of an update of them, three steps of about lr * 0.2 * sqrt(48).
        torch.testing.assert_close(weight, results[1][name], rtol=0, atol=3 * 0.014 * 2**-5, msg=name)


def test_the_threshold_holds_where_muon_alone_lets_logits_grow() -> None:
    tops: dict[str, list[float]] = {}
    for name, qk_clip in (("muon", None), ("muonclip", 2.0)):
        torch.manual_seed(0)
        model = small_models.llama(layers=1).train()
        probe = AttentionProbe(model, threshold=2.0)
        optimizer = MuonClip(model, lr=0.05, qk_clip=qk_clip, attention=probe if qk_clip else None)
        tops[name] = []
        for _ in range(25):
            optimizer.zero_grad()
            loss_of(model, random_tokens(2, 12)).backward()
            if qk_clip is None:
                tops[name].append(max(float(layer.top_H.max()) for layer in probe.monitor.collect()))
            optimizer.step()
            if qk_clip is not None:
                tops[name].append(max(optimizer.last_max_logits().values()))
    assert max(tops["muon"]) > 15
    # Clipped after each step, logits pass the threshold only by what one step of lr 0.05 adds.
    assert max(tops["muonclip"]) < 6


def test_state_has_the_usual_form() -> None:
    model = small_models.llama(layers=1)
    optimizer = MuonClip(model, qk_clip=None)
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert [group["use_muon"] for group in state["param_groups"]] == [True, False, False]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.1, 0.1, 0.0]
    for index, name in enumerate(names):
        expected = {"momentum_buffer"} if index < 7 else {"step", "exp_avg", "exp_avg_sq"}
        assert set(state["state"][index]) == expected
        for key, value in state["state"][index].items():
            assert key == "step" or value.shape == model.get_parameter(name).shape


def test_parameters_without_gradient_stay() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.Sequential(first, second)
    optimizer = MuonClip(model, lr=0.1, qk_clip=None)
    before = weights_of(model)
    first(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(second.weight, before["1.weight"])
    assert not torch.equal(first.weight, before["0.weight"])
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(second.weight, before["1.weight"])


def test_weights_in_any_memory_order_are_updated() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 8, 3, bias=False)
    linear = nn.Linear(8, 4, bias=False)
    for model, transposed in (
        (convolution, copy.deepcopy(convolution).to(memory_format=torch.channels_last)),  # pyright: ignore[reportCallIssue]
        (linear, copy.deepcopy(linear)),
    ):
        if model is linear:
            transposed.weight = nn.Parameter(linear.weight.detach().mT.contiguous().mT)
        assert not transposed.weight.is_contiguous()
        gradient = torch.randn(model.weight.shape)
        for one in (model, transposed):
            one.weight.grad = gradient.clone()
            optimizer = MuonClip(one, lr=0.1, qk_clip=None)
            for _ in range(2):
                optimizer.step()
        torch.testing.assert_close(transposed.weight, model.weight)
    expanded = nn.Linear(4, 4, bias=False)
    expanded.weight.grad = torch.ones(1, 1).expand(4, 4)
    MuonClip(expanded, qk_clip=None).step()


def test_per_head_orthogonalises_every_head() -> None:
    torch.manual_seed(0)
    model = small_models.llama(layers=1, heads=4, key_heads=4, head_dim=8).train()
    config = NewtonSchulzConfig(coefficients="polar_express", steps=9, dtype="float32")
    optimizer = MuonClip(model, lr=0.1, weight_decay=0.0, qk_clip=None, newton_schulz=config, per_head=True)
    before = weights_of(model)
    train(model, optimizer, range(1))
    name = "model.layers.0.self_attn.q_proj.weight"
    update = (before[name] - model.get_parameter(name).detach()) / 0.1
    for head in update.view(4, 8, 48):
        # 0.2·√max(8, 48) times a matrix of orthonormal rows.
        torch.testing.assert_close(head @ head.mT / (0.04 * 48), torch.eye(8), atol=1e-3, rtol=0)


def test_groups_decide_for_themselves() -> None:
    torch.manual_seed(0)
    fused, other = nn.Linear(6, 9, bias=False), nn.Linear(6, 6)
    twin = copy.deepcopy(fused)
    optimizer = MuonClip(
        [
            {"params": [fused.weight], "use_muon": True, "row_splits": (4, 5), "lr": 0.05},
            {"params": other.parameters(), "use_muon": False, "weight_decay": 0.0},
        ],
        lr=0.01,
        qk_clip=None,
    )
    gradient = torch.randn(9, 6)
    fused.weight.grad = gradient.clone()
    other.weight.grad = torch.ones(6, 6)
    start = other.weight.detach().clone()
    optimizer.step()
    for part in (slice(0, 4), slice(4, 9)):
        single = nn.Linear(6, part.stop - part.start, bias=False)
        single.weight = nn.Parameter(twin.weight.detach()[part].clone())
        single.weight.grad = gradient[part].clone()
        MuonClip(single, lr=0.05, qk_clip=None).step()
        torch.testing.assert_close(fused.weight.detach()[part], single.weight.detach())
    # AdamW's first step is the learning rate in the gradient's sign.
    torch.testing.assert_close(other.weight.detach(), start - 0.01)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 3))], "use_muon": True})
    assert len(optimizer.param_groups) == 3
    with pytest.raises(ConfigError, match="a parameter group has use_muon None; expected True"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 3))]})


def test_named_parameters_are_divided_by_name() -> None:
    model = small_models.llama()
    optimizer = MuonClip(model.named_parameters(), qk_clip=None)
    assert "adamw   yes    lm_head.weight" in optimizer.describe()
    assert optimizer.describe().endswith("qk-clip: off")


def test_describe_tells_what_is_clipped() -> None:
    optimizer = MuonClip(small_models.qwen3(), qk_clip=QKClipConfig(threshold=50, form="layer"))
    assert optimizer.describe().splitlines()[-1] == (
        "qk-clip: layer, threshold 50, alpha 0.5, 2 layers (NormedAttention)"
    )


def test_a_closure_is_called_with_gradients() -> None:
    model = nn.Linear(3, 3)
    optimizer = MuonClip(model, qk_clip=None)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(closure(), abs=0.1)


def test_the_report_names_layers_and_counts_hot_heads() -> None:
    torch.manual_seed(0)
    model = small_models.llama().train()
    optimizer = MuonClip(model, lr=0.0, qk_clip=0.01)
    assert optimizer.last_max_logits() == {}
    train(model, optimizer, range(1))
    report = optimizer.clip_report
    assert report is not None
    assert [layer.name for layer in report.layers] == list(optimizer.last_max_logits())
    assert report.num_hot_heads == sum(int((layer.maximum_H > 0.01).sum()) for layer in report.layers) > 0
    assert report.max_logit == max(optimizer.last_max_logits().values())


def test_a_step_without_observation_warns_once() -> None:
    model = small_models.llama().eval()
    optimizer = MuonClip(model)
    loss_of(model, random_tokens(1, 4)).backward()
    with pytest.warns(
        UserWarning, match=r"saw no logits of model\.layers\.0\.self_attn and 1 more layers.*training mode"
    ):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_logits_that_are_no_numbers_leave_the_weights() -> None:
    model = small_models.llama().train()
    optimizer = MuonClip(model)
    loss_of(model, random_tokens(1, 4)).backward()
    before = weights_of(model)
    with torch.no_grad():
        cast(Any, model).model.layers[1].self_attn.k_proj.weight[0, 0] = math.nan
    before["model.layers.1.self_attn.k_proj.weight"][0, 0] = math.nan
    # Long enough rows: PyTorch's CPU kernel takes short ones that are all NaN for fully masked, and returns zeros.
    loss_of(model, random_tokens(1, 40))
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.self_attn, head 0, is NaN or infinite"):
        optimizer.step()
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 3}, r"optim\.lr is 3; expected below 1; did you mean 3e-4\?"),
        ({"momentum": -0.1}, r"optim\.momentum is -0\.1; expected at least 0 and below 1"),
        ({"qk_clip": -1}, r"optim\.qk_clip\.threshold is -1; expected above 0"),
        ({"stack_bytes": -1}, r"optim\.stack_bytes is -1; expected at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MuonClip(small_models.llama(), **options)


def test_parameters_that_do_not_tell_enough_are_refused() -> None:
    model = small_models.llama()
    with pytest.raises(ConfigError, match="cannot tell embeddings from matrices in a plain list of parameters"):
        MuonClip(cast(Any, list(model.parameters())))
    with pytest.raises(ConfigError, match="cannot tell embeddings"):
        MuonClip([])
    with pytest.raises(ConfigError, match=r"QK-Clip needs the attention layers.*attention=AttentionProbe\(model\)"):
        MuonClip(model.named_parameters())
    with pytest.raises(ConfigError, match="per_head needs the model to know its heads"):
        MuonClip(model.named_parameters(), qk_clip=None, per_head=True)
    with pytest.raises(ConfigError, match=r"group parameter 0 has shape \(4,\); Muon updates matrices"):
        MuonClip([{"params": [nn.Parameter(torch.ones(4))], "use_muon": True}], qk_clip=None)
    with pytest.raises(
        ConfigError, match=r"row_splits \(2, 3\) of parameter group parameter 0 add up to 5; expected 4"
    ):
        MuonClip([{"params": [nn.Parameter(torch.ones(4, 4))], "use_muon": True, "row_splits": (2, 3)}], qk_clip=None)


def test_state_of_another_model_is_refused() -> None:
    small, large = small_models.llama(layers=1), small_models.llama(layers=2)
    optimizer = MuonClip(small, qk_clip=None)
    train(small, optimizer, range(1))
    state = optimizer.state_dict()
    with pytest.raises(CheckpointError, match=r"groups of \(parameters, use_muon\).*saved by another optimizer"):
        MuonClip(large, qk_clip=None).load_state_dict(state)
    wider = small_models.llama(layers=1, head_dim=16)
    with pytest.raises(
        CheckpointError, match=r"momentum_buffer of parameter model\.layers\.0\.self_attn\.q_proj\.weight"
    ):
        MuonClip(wider, qk_clip=None).load_state_dict(state)
    with pytest.raises(CheckpointError, match="the optimizer state holds weights; expected what"):
        MuonClip(small, qk_clip=None).load_state_dict({"weights": 1})
    with pytest.raises(CheckpointError, match="saved by another optimizer"):
        MuonClip(small, qk_clip=None).load_state_dict(torch.optim.AdamW(small.parameters()).state_dict())


def test_the_configuration_builds_every_kind() -> None:
    model = small_models.llama()
    assert isinstance(build_optimizer(model, MuonClipConfig(optimizer="adamw")), torch.optim.AdamW)
    muon = build_optimizer(model, MuonClipConfig(optimizer="muon"))
    assert isinstance(muon, MuonClip)
    assert muon.describe().endswith("qk-clip: off")
    clip = build_optimizer(model, MuonClipConfig(lr=1e-3, qk_clip=QKClipConfig(threshold=30)))
    assert isinstance(clip, MuonClip)
    assert "threshold 30" in clip.describe()
    assert clip.param_groups[0]["lr"] == 1e-3
