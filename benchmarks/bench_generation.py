"""Greedy generation of Chogori's absorbed decode and of transformers' `generate`, the same weights, float32.

    python benchmarks/bench_generation.py [--rounds 5] [--batches 1,8]

transformers expands every cached latent into full keys and values in each step; Chogori keeps the latents.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from functools import partial
from typing import Any

import torch
from measurement import Comparison, print_rows, timed, write_results
from torch import Tensor

from chogori.model import K2Config, K2Model, generate
from chogori.train.allocator import keep_freed_memory

PROMPT_TOKENS, NEW_TOKENS = 64, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,8")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    from transformers import DeepseekV3ForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    keep_freed_memory()  # for both: they share this process
    ours = K2Model(K2Config.preset("nano"), seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs: Any = DeepseekV3ForCausalLM.from_pretrained(folder).eval()

    def run_ours(tokens_BT: Tensor) -> Tensor:
        return torch.stack(list(generate(ours, tokens_BT, max_new_tokens=NEW_TOKENS)), dim=1)

    def run_theirs(tokens_BT: Tensor) -> Tensor:
        result = theirs.generate(
            tokens_BT,
            attention_mask=torch.ones_like(tokens_BT),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        return result[:, PROMPT_TOKENS:]

    rows: list[dict[str, object]] = []
    for batch in map(int, arguments.batches.split(",")):
        tokens_BT = torch.randint(0, ours.config.vocab_size, (batch, PROMPT_TOKENS))
        contenders = {"chogori": partial(run_ours, tokens_BT), "transformers": partial(run_theirs, tokens_BT)}
        if not torch.equal(*(run() for run in contenders.values())):
            raise SystemExit("the two generate different tokens from the same weights; the comparison means nothing")
        comparison = Comparison(unit="tokens/s", higher_is_better=True)
        for _ in range(arguments.rounds):
            samples = {name: timed(run) for name, run in contenders.items()}
            comparison.add_turn(
                {name: (batch * NEW_TOKENS / s.elapsed_s, s.others_share) for name, s in samples.items()}
            )
        rows += [{**row, "name": f"batch {batch}: {row['name']}"} for row in comparison.rows("chogori")]
    print_rows(rows, "tokens/s")
    write_results(
        "generation",
        title=f"Greedy generation, nano model, float32, {PROMPT_TOKENS} prompt and {NEW_TOKENS} new tokens, 2 threads",
        command="python benchmarks/bench_generation.py",
        unit="tokens/s",
        rows=rows,
        note="Both generate the same tokens.",
    )


if __name__ == "__main__":
    main()
