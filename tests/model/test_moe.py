"""Routing by hand, experts against a loop over tokens, and balancing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from chogori.model import K2Config, K2Model
from chogori.model.expert_kernels import grouped_experts, routed_experts, visited_experts
from chogori.model.moe import MixtureOfExperts, Router, Routing, sequence_balance_loss

MakeModel = Callable[..., K2Model]


def make_router(config: K2Config, seed: int = 0) -> Router:
    generator = torch.Generator().manual_seed(seed)
    router = Router(config).eval()
    with torch.no_grad():
        router.weight.normal_(0.0, 0.3, generator=generator)
        router.e_score_correction_bias.normal_(0.0, 0.3, generator=generator)
    return router


def inputs(config: K2Config, num_tokens: int = 50) -> Tensor:
    return torch.randn(num_tokens, config.hidden_size, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def test_the_bias_chooses_and_does_not_weigh(small: K2Config) -> None:
    router, x_TD = make_router(small), inputs(small)
    routing = router(x_TD)
    scores_TE = torch.sigmoid(x_TD @ router.weight.T)
    for token, score_E in enumerate(scores_TE):
        ranked = sorted(range(8), key=lambda expert: -float(score_E[expert] + router.e_score_correction_bias[expert]))
        assert set(routing.experts_TK[token].tolist()) == set(ranked[:3])
        chosen_K = score_E[routing.experts_TK[token]]
        torch.testing.assert_close(routing.weights_TK[token], chosen_K / chosen_K.sum() * 1.7)


def test_only_the_best_groups_are_visited(small: K2Config) -> None:
    config = small.replace(num_expert_groups=4, num_groups_per_token=2, num_experts_per_token=4)
    router, x_TD = make_router(config), inputs(config)
    choice_TE = torch.sigmoid(x_TD @ router.weight.T) + router.e_score_correction_bias
    for token, experts_K in enumerate(router(x_TD).experts_TK):
        # Groups of two experts: a group's score is the sum of both.
        best = choice_TE[token].view(4, 2).sum(-1).topk(2).indices.tolist()
        assert sorted(experts_K.tolist()) == sorted(2 * group + at for group in best for at in (0, 1))


def test_unnormalised_weights_are_the_scaled_scores(small: K2Config) -> None:
    router = make_router(small.replace(normalize_routing_weights=False))
    routing = router(inputs(small))
    torch.testing.assert_close(routing.weights_TK, routing.scores_TE.gather(1, routing.experts_TK) * 1.7)


def test_the_router_computes_in_float32_whatever_the_input(small: K2Config) -> None:
    router, x_TD = make_router(small), inputs(small).bfloat16()
    assert torch.equal(router(x_TD).scores_TE, router(x_TD.float()).scores_TE)


def by_tokens(x_TD: Tensor, routing: Routing, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """The definition, one token and expert at a time."""
    rows: list[Tensor] = []
    for x_D, experts_K, weights_K in zip(x_TD, routing.experts_TK, routing.weights_TK, strict=True):
        outputs = [
            weight * (down_EDF[expert] @ (functional.silu(gate_EFD[expert] @ x_D) * (up_EFD[expert] @ x_D)))
            for expert, weight in zip(experts_K.tolist(), weights_K, strict=True)
        ]
        rows.append(torch.stack(outputs).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("kernel", [routed_experts, grouped_experts])
@pytest.mark.parametrize("skew", [0.0, 5.0], ids=["even", "some experts idle"])
def test_experts_equal_a_loop_over_tokens(small: K2Config, kernel: Callable[..., Tensor], skew: float) -> None:
    config, generator = small, torch.Generator().manual_seed(2)
    router = make_router(config)
    with torch.no_grad():
        router.e_score_correction_bias[:4] += skew
    leaves = {
        "x": inputs(config, 20),
        "gate": torch.randn(8, 16, 32, generator=generator) / 6,
        "up": torch.randn(8, 16, 32, generator=generator) / 6,
        "down": torch.randn(8, 32, 16, generator=generator) / 4,
    }
    upstream_TD = torch.randn(20, 32, generator=generator)

    def run(definition: bool) -> tuple[Tensor, dict[str, Tensor | None]]:
        parts = {name: value.clone().requires_grad_() for name, value in leaves.items()}
        router.weight.grad = None
        routing = router(parts["x"])
        if definition:
            out_TD = by_tokens(parts["x"], routing, parts["gate"], parts["up"], parts["down"])
        else:
            gate_up_EXD = torch.cat([parts["gate"], parts["up"]], dim=1)
            out_TD = kernel(parts["x"], routing.experts_TK, routing.weights_TK, gate_up_EXD, parts["down"])
        (out_TD * upstream_TD).sum().backward()
        return out_TD, {name: value.grad for name, value in parts.items()} | {"router": router.weight.grad}

    (ours, our_grads), (expected, expected_grads) = run(False), run(True)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(our_grads[name], grad, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


@torch.no_grad()
@pytest.mark.parametrize("num_tokens", [1, 2, 9])
def test_reading_only_visited_experts_changes_nothing(small: K2Config, num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(2)
    gate_EFD, up_EFD = (torch.randn(8, 16, 32, generator=generator) / 6 for _ in range(2))
    down_EDF = torch.randn(8, 32, 16, generator=generator) / 4
    x_TD = inputs(small, num_tokens)
    routing = make_router(small)(x_TD)
    ours = visited_experts(x_TD, routing.experts_TK, routing.weights_TK, gate_EFD, up_EFD, down_EDF)
    torch.testing.assert_close(ours, by_tokens(x_TD, routing, gate_EFD, up_EFD, down_EDF), atol=1e-5, rtol=1e-5)


def test_the_shared_experts_see_every_token(small: K2Config) -> None:
    layer = MixtureOfExperts(small.replace(num_shared_experts=2)).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.2)
    x_BTD = inputs(small, 12).view(2, 6, -1)
    expected = layer.experts(x_BTD.flatten(0, 1), layer.gate(x_BTD.flatten(0, 1))).view_as(x_BTD)
    torch.testing.assert_close(layer(x_BTD), expected + layer.shared_experts(x_BTD))
    without = MixtureOfExperts(small.replace(num_shared_experts=0))
    assert not any("shared" in name for name, _ in without.named_parameters())


def test_loads_count_training_tokens_only_and_the_bias_moves_against_them(
    make_model: MakeModel, tokens_BT: Tensor
) -> None:
    model = make_model()
    model(tokens_BT)
    assert int(model.expert_load_LE().sum()) == 0
    model.train()
    model(tokens_BT)
    model(tokens_BT)
    load_LE = model.expert_load_LE()
    assert load_LE.shape == (2, 8)
    assert load_LE.dtype == torch.int64
    assert load_LE.sum(-1).tolist() == [2 * tokens_BT.numel() * 3] * 2
    routers = [module for module in model.modules() if isinstance(module, Router)]
    before_LE = torch.stack([router.e_score_correction_bias.clone() for router in routers])
    model.update_router_bias(0.25)
    after_LE = torch.stack([router.e_score_correction_bias for router in routers])
    mean = 2 * tokens_BT.numel() * 3 / 8
    torch.testing.assert_close(after_LE - before_LE, 0.25 * torch.sign(mean - load_LE.float()))
    assert int(model.expert_load_LE().sum()) == 0


def test_repeated_updates_balance_a_skewed_router(small: K2Config) -> None:
    router = make_router(small).train()
    with torch.no_grad():
        router.e_score_correction_bias.copy_(torch.linspace(-1, 1, 8))
    x_TD = inputs(small, 400)

    def largest_share() -> float:
        router.load_E.zero_()
        router(x_TD)
        return float(router.load_E.max() / router.load_E.float().mean())

    before = largest_share()
    for _ in range(200):
        router.load_E.zero_()
        router(x_TD)
        router.update_bias(0.02)
    assert before > 2
    assert largest_share() < 1.25


def test_the_balance_loss_is_one_when_balanced_and_largest_when_collapsed() -> None:
    def routing(scores_TE: Tensor, experts_TK: Tensor) -> Routing:
        return Routing(scores_TE=scores_TE, experts_TK=experts_TK, weights_TK=torch.ones(experts_TK.shape))

    # Two sequences of four tokens, four experts, one each: every expert once per sequence.
    balanced = routing(torch.full((8, 4), 0.5), torch.tensor([[0], [1], [2], [3]] * 2))
    assert float(sequence_balance_loss(balanced, num_sequences=2)) == pytest.approx(1.0)
    collapsed = routing(torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 8), torch.zeros(8, 1, dtype=torch.int64))
    assert float(sequence_balance_loss(collapsed, num_sequences=2)) == pytest.approx(4.0)
    # Balanced over the batch, collapsed within each sequence: the loss is sequence-wise.
    scores_TE = torch.eye(4)[[0] * 4 + [1] * 4]
    split = routing(scores_TE, torch.tensor([[0]] * 4 + [[1]] * 4))
    assert float(sequence_balance_loss(split, num_sequences=2)) == pytest.approx(4.0)


@torch.no_grad()
def test_the_balance_loss_enters_the_loss_with_its_weight(
    make_model: MakeModel, small: K2Config, tokens_BT: Tensor
) -> None:
    targets_BT = tokens_BT.roll(-1, 1)
    plain = make_model().train()
    weighted = make_model(small.replace(sequence_balance_weight=0.01)).train()
    difference = weighted.loss(tokens_BT, targets_BT) - plain.loss(tokens_BT, targets_BT)
    # About 1 per sparse layer when nearly balanced, and never below it by much.
    assert 0.015 < float(difference) < 0.06
    assert torch.equal(weighted.eval().loss(tokens_BT, targets_BT), plain.eval().loss(tokens_BT, targets_BT))
