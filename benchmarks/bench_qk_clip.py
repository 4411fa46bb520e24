"""What QK-Clip adds to a training step: off, on with no hot head, and on with every head hot.

Three copies of the nano model in one process; a turn takes one step with each, on the same tokens. "No hot head" is the
threshold of K2 on a fresh model, where screening by the log-sum-exp clears every head. "Every head hot" is a threshold
below all logits: then each head's exact maximum is computed and its weights are scaled, in every layer.

    python benchmarks/bench_qk_clip.py [--rounds 30]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from functools import partial

import torch
from measurement import Comparison, print_rows, timed, write_results
from torch import Tensor

from chogori.model import K2Config, K2Model
from chogori.optim import MuonClip
from chogori.train.allocator import keep_freed_memory

BATCH, LENGTH = 8, 512
KINDS = {"on, no head hot": 100.0, "off": None, "on, every head hot": 1e-3}


def step(model: K2Model, optimizer: MuonClip, tokens_BT: Tensor) -> None:
    model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    models: dict[str, K2Model] = {}
    optimizers: dict[str, MuonClip] = {}
    for kind, threshold in KINDS.items():
        models[kind] = K2Model(K2Config.preset("nano"), seed=0).train()
        models[kind].compute_dtype = torch.bfloat16
        optimizers[kind] = MuonClip(models[kind], lr=1e-4, qk_clip=threshold)
    start = copy.deepcopy(models["off"].state_dict())
    comparison = Comparison(unit="ms", higher_is_better=False)
    for turn in range(arguments.rounds + 2):
        tokens_BT = torch.randint(0, 8192, (BATCH, LENGTH + 1))
        for model in models.values():  # clipped weights would have no hot heads the next time
            model.load_state_dict(start)
        order = list(KINDS)[turn % 3 :] + list(KINDS)[: turn % 3]  # whoever comes first finds other caches
        samples = {kind: timed(partial(step, models[kind], optimizers[kind], tokens_BT)) for kind in order}
        if turn >= 2:
            comparison.add_turn({kind: (samples[kind].elapsed_s * 1e3, samples[kind].others_share) for kind in KINDS})
    for kind, hot in (("on, no head hot", 0), ("on, every head hot", 32)):
        report = optimizers[kind].clip_report
        if report is None or report.num_hot_heads != hot:
            raise SystemExit(f"{kind}: expected {hot} hot heads; the benchmark measures something else")
    rows = comparison.rows("on, no head hot")
    print_rows(rows, comparison.unit)
    costs = {kind: [turn[kind] / turn["off"] - 1 for turn in comparison.quiet_turns] for kind in KINDS if kind != "off"}
    sentences = [
        f"QK-Clip {kind}: {statistics.median(cost):+.1%} of the step (median of {len(cost)} turns; middle half "
        f"{statistics.quantiles(cost, n=4)[0]:+.1%} to {statistics.quantiles(cost, n=4)[2]:+.1%})"
        for kind, cost in costs.items()
    ]
    print("\n".join(sentences))
    write_results(
        "qk_clip",
        title="A training step with and without QK-Clip, 10.4 M parameters, 8 × 512 tokens, 2 threads",
        command="python benchmarks/bench_qk_clip.py",
        unit="ms",
        rows=rows,
        note=". ".join(sentences) + ".",
    )


if __name__ == "__main__":
    main()
