"""One step: what it does not depend on, and what stops it."""

from collections.abc import Callable

import pytest
import torch

from chogori.data import PackedLoader, PreparedData, prepare
from chogori.errors import NonFiniteError
from chogori.model.transformer import K2Model
from chogori.train.config import TrainConfig
from chogori.train.loop import TrainingLoop, summarize_load
from chogori.train.optimizer import StepOptimizer


@pytest.fixture
def data(make_config) -> PreparedData:
    config = make_config()
    return prepare(config.data, config.data_folder)


@pytest.fixture
def make_loop(data) -> Callable[[TrainConfig], TrainingLoop]:
    def make(config: TrainConfig) -> TrainingLoop:
        model = K2Model(config.model, seed=config.seed)
        return TrainingLoop(
            config,
            model=model,
            optimizer=StepOptimizer(config.optim, model),
            loader=PackedLoader(
                data.train, batch_size=config.batch_size, sequence_length=config.sequence_length, seed=config.seed
            ),
            device=torch.device("cpu"),
            peak_flop_per_s=1e9,
        )

    return make


def steps(loop: TrainingLoop, number: int):
    return [loop.take_step(rate_multiplier=1.0, elapsed_s=0.0) for _ in range(number)]


@pytest.mark.parametrize("name", ["adamw", "muonclip"])
def test_accumulated_micro_batches_equal_one_batch(make_config, make_loop, name):
    """4 micro-batches of 2 rows give the gradient of 1 batch of 8 rows.

    L = Σ_rows Σ_targets nll / N with N the targets of the whole step. N is a constant of the step, so the gradient is
    the sum over rows of ∇(Σ nll) / N in any grouping; only the order of float32 additions differs. Expert loads are
    counts and add exactly. With u = 2⁻²⁴ and sums of at most n = 256 tokens and 8 rows, a gradient differs by about
    √n·u ≈ 1e-6 of the largest summand. AdamW divides by the root of the second moment, so where a gradient element is
    itself a near-cancelled sum its update may differ by more; the loss of the next step, an average over all of them,
    stays within 1e-4.
    """
    config = make_config(precision="float32", sequence_length=32)
    config = config.replace(optim=type(config.optim)(optimizer=name, lr=1e-3))
    parts = make_loop(config.replace(batch_size=2, gradient_accumulation=4))
    whole = make_loop(config.replace(batch_size=8, gradient_accumulation=1))
    (first_of_parts, second_of_parts), (first_of_whole, second_of_whole) = steps(parts, 2), steps(whole, 2)
    assert first_of_parts.loss == pytest.approx(first_of_whole.loss, rel=1e-6)
    assert first_of_parts.grad_norm == pytest.approx(first_of_whole.grad_norm, rel=1e-5)
    assert first_of_parts.expert_load == first_of_whole.expert_load
    assert first_of_parts.max_logits == pytest.approx(first_of_whole.max_logits, rel=1e-4)
    assert second_of_parts.loss == pytest.approx(second_of_whole.loss, rel=1e-4)


def test_gradients_of_accumulated_micro_batches_equal_those_of_one_batch(make_config, make_loop):
    """The same at the gradients themselves, before any optimizer: see the derivation above."""
    config = make_config(precision="float32", grad_clip_norm=None)
    gradients = []
    for batch_size, accumulation in ((2, 4), (8, 1)):
        loop = make_loop(config.replace(batch_size=batch_size, gradient_accumulation=accumulation))
        batches = [loop._to_device(loop.loader.next_batch()) for _ in range(accumulation)]
        loop._accumulate_gradients(batches, sum(batch.num_targets for batch in batches))
        gradients.append({name: parameter.grad for name, parameter in loop.model.named_parameters()})
    for name, expected in gradients[1].items():
        largest = float(expected.abs().max())
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-5, atol=1e-5 * largest, msg=name)


def test_uneven_micro_batches_weigh_by_their_targets(make_config, make_loop):
    """The loss is the mean over tokens, not the mean of means: padding in one micro-batch does not raise its weight."""
    loop = make_loop(make_config(precision="float32", batch_size=2, gradient_accumulation=2))
    batches = [loop._to_device(loop.loader.next_batch()) for _ in range(2)]
    batches[1].targets_BT[:, 5:] = -100
    counts = [int((batch.targets_BT != -100).sum()) for batch in batches]
    batches = [type(b)(b.tokens_BT, b.targets_BT, b.documents_BT, n) for b, n in zip(batches, counts, strict=True)]
    with torch.no_grad():
        sums = [
            float(loop.model.loss(b.tokens_BT, b.targets_BT, documents_BT=b.documents_BT, normaliser=1.0))
            for b in batches
        ]
    found = loop._accumulate_gradients(batches, sum(counts))
    assert found == pytest.approx(sum(sums) / sum(counts), rel=1e-6)
    assert found != pytest.approx(sum(s / n for s, n in zip(sums, counts, strict=True)) / 2, rel=1e-6)


def test_gradients_are_clipped_to_the_norm(make_config, make_loop):
    loop = make_loop(make_config(precision="float32", grad_clip_norm=0.01))
    batches = [loop._to_device(loop.loader.next_batch())]
    loop._accumulate_gradients(batches, batches[0].num_targets)
    before = loop._clip_gradients()
    assert before > 0.1
    total = sum(float(parameter.grad.double().square().sum()) for parameter in loop.model.parameters()) ** 0.5
    assert total == pytest.approx(0.01, rel=1e-4)


def test_the_router_bias_moves_against_the_load(make_config, make_loop):
    loop = make_loop(make_config(router_bias_rate=0.125, load_interval=1))
    (metrics,) = steps(loop, 1)
    biases = [buffer for name, buffer in loop.model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert metrics.expert_load is not None
    for bias_E, load in zip(biases, metrics.expert_load, strict=True):
        mean = sum(load) / len(load)
        assert bias_E.tolist() == [0.125 * ((mean > tokens) - (mean < tokens)) for tokens in load]
    assert int(loop.model.expert_load_LE().sum()) == 0


def test_metrics_are_of_the_step(make_config, make_loop):
    loop = make_loop(make_config(load_interval=2))
    first, second, third = steps(loop, 3)
    assert [m.step for m in (first, second, third)] == [1, 2, 3]
    assert [m.tokens for m in (first, second, third)] == [64, 128, 192]
    assert first.expert_load is not None
    assert second.expert_load is not None
    assert third.expert_load is None
    # Each of 64 tokens visits 2 experts in each of 2 sparse layers.
    assert [sum(row) for row in first.expert_load] == [128, 128]
    assert first.learning_rate == pytest.approx(5e-3)
    assert len(first.max_logits) == 3
    assert all(value > 0 for value in first.max_logits)
    assert first.timing.peak_share > 0


def test_load_is_summarized_by_layer():
    load_LE = torch.tensor([[10, 10, 10, 10], [1, 2, 3, 34]])
    hottest, coldest, violation = summarize_load(load_LE)
    assert (hottest, coldest) == ((1, 3), (1, 0))
    assert violation == pytest.approx((0.0, 2.4))
    assert summarize_load(torch.zeros(0, 4)) == (None, None, ())


# ---- NaN and infinity -----------------------------------------------------------------------------------------------


def weights(loop):
    return {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}


def assert_unchanged(loop, before):
    for name, tensor in loop.model.state_dict().items():
        assert torch.equal(tensor, before[name]) or bool(tensor.isnan().any()), name


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["adamw", "muonclip"])
def test_a_nan_weight_stops_before_the_update_and_is_named(make_config, make_loop, name, accumulation):
    config = make_config(gradient_accumulation=accumulation)
    loop = make_loop(config.replace(optim=type(config.optim)(optimizer=name, lr=1e-3)))
    steps(loop, 1)
    with torch.no_grad():
        loop.model.state_dict()["model.layers.1.self_attn.o_proj.weight"][0, 0] = float("nan")
    before = weights(loop)
    with pytest.raises(NonFiniteError) as stop:
        steps(loop, 1)
    words = str(stop.value)
    assert "step 2" in words
    assert "the weight model.layers.1.self_attn.o_proj.weight holds 1 NaN and 0 infinite" in words
    assert "lower optim.lr (now 0.001)" in words
    assert "checkpoints are untouched" in words
    assert loop.step == 1
    assert_unchanged(loop, before)


def test_an_overflow_is_traced_to_its_layer(make_config, make_loop):
    loop = make_loop(make_config(precision="float32"))
    with torch.no_grad():
        for name in ("up_proj", "down_proj"):
            loop.model.state_dict()[f"model.layers.0.mlp.{name}.weight"].mul_(1e25)
    with pytest.raises(NonFiniteError, match=r"the output of model\.layers\.0\.mlp.* holds"):
        steps(loop, 1)


def test_an_infinite_gradient_stops_before_the_update_and_is_named(make_config, make_loop):
    loop = make_loop(make_config(precision="float32"))
    before = weights(loop)
    parameter = dict(loop.model.named_parameters())["model.layers.2.mlp.experts.up_proj"]
    parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), float("inf")))
    with pytest.raises(NonFiniteError, match=r"gradient norm of step 1 is .*model\.layers\.2\.mlp\.experts\.up_proj"):
        steps(loop, 1)
    for name, tensor in loop.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
