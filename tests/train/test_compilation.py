"""Compiled blocks take the same steps."""

import pytest
import torch

from chogori.data import PackedLoader, prepare
from chogori.model.transformer import K2Model
from chogori.train.compilation import compile_blocks, should_compile
from chogori.train.loop import TrainingLoop
from chogori.train.optimizer import StepOptimizer


def test_only_always_compiles(make_config):
    assert [should_compile(make_config(compile=how)) for how in ("auto", "never", "always")] == [False, False, True]


@pytest.mark.filterwarnings("ignore")  # Dynamo trips over its own warnings while it traces
def test_compiled_blocks_train_alike_and_observe_alike(make_config):
    """aot_eager traces forward and backward as inductor's front end does, and runs the same kernels as eager mode."""
    config = make_config(precision="float32")
    data = prepare(config.data, config.data_folder)
    found = []
    for compiled in (False, True):
        model = K2Model(config.model, seed=0)
        names = list(model.state_dict())
        if compiled:
            compile_blocks(model, backend="aot_eager")
        assert list(model.state_dict()) == names
        loader = PackedLoader(data.train, batch_size=2, sequence_length=32, seed=0)
        loop = TrainingLoop(
            config,
            model=model,
            optimizer=StepOptimizer(config.optim, model),
            loader=loader,
            device=torch.device("cpu"),
            peak_flop_per_s=1e9,
        )
        found.append([loop.take_step(rate_multiplier=1.0, elapsed_s=0.0) for _ in range(3)])
    for eager, compiled in zip(*found, strict=True):
        assert compiled.loss == pytest.approx(eager.loss, rel=1e-5)
        assert compiled.grad_norm == pytest.approx(eager.grad_norm, rel=1e-4)
        assert compiled.max_logits == pytest.approx(eager.max_logits, rel=1e-4)
        assert compiled.expert_load == eager.expert_load
