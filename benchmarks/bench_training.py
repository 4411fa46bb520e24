"""Training speed of Chogori and of transformers' DeepseekV3 on one small model, side by side.

Every contender is a process of its own that trains on fresh random tokens and waits between turns; turns go round, so
that whatever else the machine does falls on all of them alike. Speeds are medians over turns, ratios are taken turn by
turn. Peak memory is each process's largest resident set.

    python benchmarks/bench_training.py [--rounds 12] [--steps 2] [--contenders chogori,transformers-compiled]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict

from measurement import Comparison, bar_line, print_rows, timed, write_results

BATCH, LENGTH = 8, 512
CONTENDERS = {
    "chogori": "MuonClip, bfloat16, eager",
    "chogori-default-allocator": "the same, with the C library's memory settings left alone",
    "transformers-eager": "float32 as shipped, AdamW",
    "transformers-eager-muon": "float32 as shipped, torch.optim.Muon",
    "transformers-compiled": "bfloat16 autocast, grouped products, torch.compile, AdamW",
    "transformers-compiled-muon": "the same with torch.optim.Muon",
    "transformers-compiled-same-allocator": "compiled, AdamW, with Chogori's memory settings",
}
BARS = (("chogori", "transformers-eager", 2.5), ("chogori", "transformers-compiled", 1.5))


def chogori_step(*, own_allocator: bool) -> Callable[[], None]:
    import torch

    from chogori.model import K2Config, K2Model
    from chogori.optim import MuonClip
    from chogori.train.allocator import keep_freed_memory

    if own_allocator:
        keep_freed_memory()
    model = K2Model(K2Config.preset("nano"), seed=0).train()
    model.compute_dtype = torch.bfloat16
    optimizer = MuonClip(model, lr=3e-4)

    def step() -> None:
        tokens_BT = torch.randint(0, model.config.vocab_size, (BATCH, LENGTH + 1))
        model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_router_bias(1e-3)

    return step


def transformers_step(*, compiled: bool, muon: bool, same_allocator: bool = False) -> Callable[[], None]:
    import torch
    from peers import deepseek_config, muon_matrices
    from transformers import DeepseekV3ForCausalLM

    from chogori.model import K2Config
    from chogori.train.allocator import keep_freed_memory

    warnings.simplefilter("ignore")
    if same_allocator:
        keep_freed_memory()
    config = deepseek_config(K2Config.preset("nano"))
    config._experts_implementation = "grouped_mm" if compiled else "eager"
    model = DeepseekV3ForCausalLM(config).train()
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):  # left at zero by transformers, which would send all tokens one way
            torch.nn.init.normal_(parameter, std=0.02)
    matrices, views, rest = muon_matrices(model) if muon else ([], [], list(model.parameters()))
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=3e-4, weight_decay=0.1)]
    if muon:
        optimizers.append(torch.optim.Muon(matrices, lr=3e-4, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        tokens_BT = torch.randint(0, config.vocab_size, (BATCH, LENGTH))
        with torch.autocast("cpu", torch.bfloat16, enabled=compiled):
            loss = forward(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss
        loss.backward()
        for view, source, index in views:
            view.grad = None if source.grad is None else source.grad[index]
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def build(contender: str) -> Callable[[], None]:
    if contender.startswith("chogori"):
        return chogori_step(own_allocator=contender == "chogori")
    return transformers_step(
        compiled="compiled" in contender, muon="muon" in contender, same_allocator="same-allocator" in contender
    )


def work(contender: str, threads: int) -> None:
    """The child: build, warm up, then for each line "N" on standard input time N steps and answer in JSON."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = build(contender)
    for _ in range(4):
        step()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        sample = timed(step, repeat=int(line))
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**asdict(sample), "peak_bytes": peak_bytes}), flush=True)


class Worker:
    def __init__(self, contender: str, threads: int) -> None:
        self.contender = contender
        command = [sys.executable, __file__, "--worker", contender, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended early: {self.contender}")
        return json.loads(line)

    def run(self, steps: int) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.threads)
        return
    names = arguments.contenders.split(",")
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        parser.error(f"no contender is named {unknown[0]!r}; they are {', '.join(CONTENDERS)}")
    workers: dict[str, Worker] = {}
    for name in names:  # one after another: compiling several at once would take memory and no less time
        print(f"preparing {name} …", flush=True)
        workers[name] = Worker(name, arguments.threads)
    comparison = Comparison(unit="tokens/s", higher_is_better=True)
    peak_mib: dict[str, float] = {}
    for turn in range(arguments.rounds):
        answers = {name: worker.run(arguments.steps) for name, worker in workers.items()}
        tokens = BATCH * LENGTH * arguments.steps
        comparison.add_turn({name: (tokens / a["elapsed_s"], a["others_share"]) for name, a in answers.items()})
        peak_mib = {name: a["peak_bytes"] / 2**20 for name, a in answers.items()}
        print(f"turn {turn + 1} of {arguments.rounds}", flush=True)
    for worker in workers.values():
        worker.close()
    notes = {name: f"{CONTENDERS[name]}; peak {peak_mib[name]:.0f} MiB" for name in names}
    rows = comparison.rows("chogori", notes)
    print_rows(rows, comparison.unit)
    print(comparison.describe_quiet())
    for ours, theirs, wanted in BARS:
        if ours in names and theirs in names:
            print(bar_line(comparison, ours, theirs, wanted))
    write_results(
        "training",
        title="Training, 10.4 M parameters, 8 × 512 fresh random tokens a step, 2 threads",
        command="python benchmarks/bench_training.py",
        unit="tokens/s",
        rows=rows,
        note=comparison.describe_quiet() + ".",
    )


if __name__ == "__main__":
    main()
