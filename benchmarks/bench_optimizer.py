"""One optimizer step over all matrices of a model: ours against other Muons, and fused AdamW for scale.

Two sets: the 179 matrices of the nano model (6.2 M numbers), and a slice of a larger one in Kimi K2's proportions, two
sparse layers of 64 experts (402 matrices, 80 M numbers). Every contender has its own copy in this process; they take
turns, ratios are taken turn by turn. torch.optim.Muon, Moonlight's and Keller Jordan's know matrices only, so that
experts are given to them one by one; those that know stacks are shown with both.

    python benchmarks/bench_optimizer.py [--rounds 25] [--sets 179,402]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from measurement import Comparison, bar_line, print_rows, timed, write_results
from optimizer_peers import DionMuon, KellerJordanMuon, MoonlightMuon, TorchAdamW, TorchMuon
from torch import Tensor

from chogori.model import K2Config, K2Model
from chogori.optim import MuonClip
from chogori.optim.parameters import assign_roles

LARGE = K2Config(
    vocab_size=64,
    hidden_size=768,
    num_layers=2,
    num_dense_layers=0,
    dense_ffn_size=768,
    expert_ffn_size=256,
    num_experts=64,
    num_experts_per_token=8,
    num_heads=8,
    q_lora_rank=384,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
)
OURS = "MuonClip"
BARS = {
    "179": (("torch.optim.Muon", 3.0), ("dion", 1.4), ("dion, Polar Express", 1.4)),
    "402": (("torch.optim.Muon", 2.2), ("dion, experts stacked", 1.2)),
}
NAMES: dict[str, tuple[str, ...]] = {
    "179": (),
    # Each of the others needs 1 GB more, and dion with experts one by one a quarter of an hour of compilation.
    "402": (OURS, "torch.optim.Muon", "Moonlight", "KellerJordan", "dion, experts stacked", "AdamW, fused"),
}


def parameters_of(config: K2Config) -> list[Tensor]:
    """The parameters that Muon updates, experts as the model stores them."""
    roles = assign_roles(K2Model(config, seed=0))
    return [role.parameter.detach() for role in roles if role.update == "muon"]


def one_by_one(parameters: list[Tensor]) -> list[Tensor]:
    """Every expert a matrix of its own memory."""
    return [matrix.clone() for tensor in parameters for matrix in (tensor.unbind() if tensor.ndim == 3 else [tensor])]


def muon_clip_step(parameters: list[Tensor]) -> Callable[[], object]:
    weights = [torch.nn.Parameter(tensor.clone()) for tensor in parameters]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return MuonClip([{"params": weights, "use_muon": True}], qk_clip=None).step


def contenders(parameters: list[Tensor], names: Sequence[str]) -> dict[str, Callable[[], object]]:
    """The step of each named contender, on memory of its own."""

    def stacked() -> list[Tensor]:
        return [tensor.clone() for tensor in parameters]

    def apart() -> list[Tensor]:
        return one_by_one(parameters)

    factories: dict[str, Callable[[], Callable[[], object]]] = {
        OURS: lambda: muon_clip_step(parameters),
        "MuonClip, experts one by one": lambda: muon_clip_step(apart()),
        "torch.optim.Muon": lambda: TorchMuon(apart()).step,
        "Moonlight": lambda: MoonlightMuon(apart()).step,
        "KellerJordan": lambda: KellerJordanMuon(apart()).step,
        "KellerJordan, experts stacked": lambda: KellerJordanMuon(stacked()).step,
        "dion": lambda: DionMuon(apart()).step,
        "dion, experts stacked": lambda: DionMuon(stacked()).step,
        "dion, Polar Express": lambda: DionMuon(apart(), polar_express=True).step,
        "AdamW, fused": lambda: TorchAdamW(stacked()).step,
    }
    return {name: factories[name]() for name in names or factories}


def compare(config: K2Config, names: Sequence[str], rounds: int, limit_s: float) -> tuple[Comparison, int, int]:
    torch.manual_seed(0)
    parameters = parameters_of(config)
    count = sum(tensor.shape[0] if tensor.ndim == 3 else 1 for tensor in parameters)
    steps = contenders(parameters, names)
    for step in steps.values():
        step()
        step()
    comparison = Comparison(unit="ms", higher_is_better=False)
    start_s = time.monotonic()
    while len(comparison.turns) < rounds and time.monotonic() - start_s < limit_s:
        turn: dict[str, tuple[float, float]] = {}
        for name, step in steps.items():
            sample = timed(step)
            turn[name] = (1000 * sample.elapsed_s, sample.others_share)
        comparison.add_turn(turn)
    return comparison, count, sum(tensor.numel() for tensor in parameters)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=25, help="turns of every contender")
    options.add_argument("--sets", default="179,402")
    options.add_argument("--limit-s", type=float, default=300, help="most seconds for the turns of one set")
    arguments = options.parse_args()
    torch.set_num_threads(2)
    configs = {"179": K2Config.preset("nano"), "402": LARGE}
    for name in arguments.sets.split(","):
        comparison, count, numbers = compare(configs[name], NAMES[name], arguments.rounds, arguments.limit_s)
        title = f"Optimizer step, {count} matrices, {numbers / 1e6:.1f} M numbers"
        rows = comparison.rows(OURS)
        print(f"\n{title}; {comparison.describe_quiet()}")
        print_rows(rows, "ms")
        for theirs, wanted in BARS[name]:
            print(bar_line(comparison, OURS, theirs, wanted))
        write_results(
            f"optimizer_step_{name}",
            title=title,
            command="python benchmarks/bench_optimizer.py",
            unit="ms",
            rows=rows,
            note=f"Without AdamW's share of the parameters. Peers restated in benchmarks/optimizer_peers.py. "
            f"{comparison.describe_quiet().capitalize()}.",
        )


if __name__ == "__main__":
    main()
