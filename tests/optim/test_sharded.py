"""Two processes on gloo: FSDP2 parameters, and maxima of logits shared by data-parallel ranks."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from chogori.optim import MuonClip, NewtonSchulzConfig
from tests.optim import small_models
from tests.optim.small_models import loss_of, random_tokens

FLOAT32 = NewtonSchulzConfig(dtype="float32")


def run_on_two_ranks(body: Callable[[int, Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, args=(body, Path(folder)), nprocs=2)  # pyright: ignore
        assert len(list(Path(folder).glob("done *"))) == 2


def _enter(rank: int, body: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    body(rank, folder)
    dist.barrier()
    dist.destroy_process_group()
    # Not by the interpreter's end: threads of the backend that still run then abort the process now and then.
    os._exit(0)


def _train_sharded_and_whole(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    model = small_models.deepseek_v3().train()
    whole = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in cast(Any, model).model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded_optimizer = MuonClip(model, lr=0.01, qk_clip=0.02, newton_schulz=FLOAT32)
    # Every rank trains the whole model on both halves of the batch; its maxima are the same on both ranks.
    whole_optimizer = MuonClip(whole, lr=0.01, qk_clip=0.02, newton_schulz=FLOAT32)
    hot_heads = 0
    for step in range(3):
        halves = [random_tokens(1, 10, 2 * step + half) for half in range(2)]
        loss_of(model, halves[rank]).backward()
        for half in halves:
            (loss_of(whole, half) / 2).backward()
        for optimizer in (sharded_optimizer, whole_optimizer):
            optimizer.step()
            optimizer.zero_grad()
        reports = sharded_optimizer.clip_report, whole_optimizer.clip_report
        assert reports[0] is not None
        assert reports[1] is not None
        hot_heads += reports[0].num_hot_heads
        for sharded_layer, whole_layer in zip(reports[0].layers, reports[1].layers, strict=True):
            torch.testing.assert_close(sharded_layer.gamma_H, whole_layer.gamma_H, rtol=1e-3, atol=0)
    assert hot_heads > 0
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        # Gradients are averaged in another order; the iteration multiplies such rounding by up to 500.
        torch.testing.assert_close(parameter.full_tensor(), whole.get_parameter(name), rtol=0, atol=1e-4, msg=name)
        for value in sharded_optimizer.state[parameter].values():
            assert value.ndim == 0 or isinstance(value, DTensor)
    state = sharded_optimizer.state_dict()
    sharded_optimizer.load_state_dict(state)
    (folder / f"done {rank}").touch()


def _share_maxima(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    model = small_models.llama(layers=1).train()
    optimizer = MuonClip(model, lr=0.0, qk_clip=1e-3)
    tokens_BT = random_tokens(1, 10, rank)
    loss_of(model, tokens_BT).backward()
    optimizer.step()
    tops = [torch.zeros(()) for _ in range(2)]
    dist.all_gather(tops, torch.tensor(max(optimizer.last_max_logits().values())))
    assert tops[0] == tops[1] > 0
    weights = [torch.zeros_like(cast(Any, model).model.layers[0].self_attn.q_proj.weight) for _ in range(2)]
    dist.all_gather(weights, cast(Any, model).model.layers[0].self_attn.q_proj.weight.detach())
    assert torch.equal(weights[0], weights[1])
    (folder / f"done {rank}").touch()


def test_sharded_parameters_take_the_steps_of_whole_ones() -> None:
    run_on_two_ranks(_train_sharded_and_whole)


def test_ranks_clip_by_the_largest_logit_of_any() -> None:
    run_on_two_ranks(_share_maxima)
