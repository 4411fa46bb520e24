"""The parts of a training step on a CPU, forward and backward, each beside the PyTorch form it replaces (bfloat16).

python benchmarks/bench_kernels.py [--rounds 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measurement import Comparison, print_rows, timed, write_results
from torch import Tensor
from torch.nn import functional

from chogori.model import K2Config, attention_kernels, expert_kernels
from chogori.model.layers import RMSNorm
from chogori.model.loss import linear_cross_entropy
from chogori.model.rope import attention_scale, rotary_table
from chogori.train.allocator import keep_freed_memory

BFLOAT16 = torch.bfloat16
Work = Callable[[], None]


def leaf(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(BFLOAT16).requires_grad_()


def attention(batch: int, length: int) -> dict[str, Work]:
    config = K2Config.preset("nano").replace(max_position_embeddings=length)
    rotary = rotary_table(config, length, torch.device("cpu"))
    q = leaf(batch, length, config.num_heads, config.qk_head_dim)
    kv = leaf(batch, length, config.num_heads, config.qk_nope_head_dim + config.v_head_dim)
    k_rope = leaf(batch, length, config.qk_rope_head_dim)
    gradient = torch.randn(batch, length, config.num_heads, config.v_head_dim).to(BFLOAT16)
    scale = attention_scale(config)

    def blocked() -> None:
        attention_kernels.latent_attention(q, kv, k_rope, rotary, scale=scale).backward(gradient)

    def flash() -> None:
        attention_kernels.flash_attention(q, kv, k_rope, rotary, scale, None)[0].backward(gradient)

    return {"blocked products": blocked, "PyTorch's flash kernel": flash}


def experts(tokens: int) -> dict[str, Work]:
    config = K2Config.preset("nano")
    width, inner, count, chosen = (
        config.hidden_size,
        config.expert_ffn_size,
        config.num_experts,
        config.num_experts_per_token,
    )
    x, weights = leaf(tokens, width), torch.rand(tokens, chosen).requires_grad_()
    gate_up, down = leaf(count, 2 * inner, width, scale=0.05), leaf(count, width, inner, scale=0.05)
    gradient = torch.randn(tokens, width).to(BFLOAT16)

    def run(kernel: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]) -> Work:
        def work() -> None:
            # New choices every time, as in training: each expert then has another number of tokens.
            choice = torch.rand(tokens, count).topk(chosen, dim=-1).indices
            kernel(x, choice, weights, gate_up, down).backward(gradient)

        return work

    return {
        "one product per expert": run(expert_kernels.routed_experts),
        "PyTorch's grouped products": run(expert_kernels.grouped_experts),
    }


def norm(tokens: int, width: int) -> dict[str, Work]:
    ours, x, gradient = RMSNorm(width, 1e-6), leaf(tokens, width), torch.randn(tokens, width).to(BFLOAT16)
    weight = torch.ones(width, dtype=BFLOAT16, requires_grad=True)

    def theirs() -> None:
        functional.rms_norm(x, (width,), weight, 1e-6).backward(gradient)

    return {"RMSNorm, hand-written gradient": lambda: ours(x).backward(gradient), "PyTorch's rms_norm": theirs}


def head(tokens: int, width: int, vocabulary: int) -> dict[str, Work]:
    x, weight = leaf(tokens, width), leaf(vocabulary, width, scale=0.02)
    targets = torch.randint(0, vocabulary, (tokens,))

    def theirs() -> None:
        functional.cross_entropy((x @ weight.T).float(), targets).backward()

    return {
        "chunked cross-entropy": lambda: linear_cross_entropy(x, weight, targets, float(tokens)).backward(),
        "logits of the whole batch": theirs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    parts = {
        "attention, 8 × 512 tokens": attention(8, 512),
        "attention, 2 × 2,048 tokens": attention(2, 2048),
        "16 experts, 4,096 tokens": experts(4096),
        "norm, 4,096 × 256": norm(4096, 256),
        "head and loss, 4,096 tokens, 8,192 rows": head(4096, 256, 8192),
    }
    rows: list[dict[str, object]] = []
    for part, contenders in parts.items():
        comparison = Comparison(unit="ms", higher_is_better=False)
        for work in contenders.values():
            work()
        for _ in range(arguments.rounds):
            samples = {name: timed(work) for name, work in contenders.items()}
            comparison.add_turn({name: (s.elapsed_s * 1e3, s.others_share) for name, s in samples.items()})
        ours = next(iter(contenders))
        rows += [{**row, "name": f"{part}: {row['name']}"} for row in comparison.rows(ours)]
    print_rows(rows, "ms")
    write_results(
        "kernels",
        title="Parts of a training step, forward and backward, bfloat16, 2 threads",
        command="python benchmarks/bench_kernels.py",
        unit="ms",
        rows=rows,
    )


if __name__ == "__main__":
    main()
