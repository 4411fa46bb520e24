"""vLLM's CPU build as a contender: run by an interpreter that has it, with the environment that bench_engine.py sets.

    PYTHON benchmarks/vllm_worker.py FOLDER DTYPE NEW_TOKENS

FOLDER holds a Hugging Face model, DTYPE is float32 or bfloat16. Reads one JSON list of prompts (lists of ids) a line,
answers with the greedy continuations. vLLM is used through its `LLM` class, without a server before it, and compiles
the model as it does by default: with `enforce_eager`, version 0.32.0 gives other tokens, since its own kernel on
processors for rotary positions takes a query (tokens, heads, width) for one head of every token.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

MAX_SEQUENCES = 16
MAX_TOKENS = 512
"""Of a prompt with its continuation."""
CACHE_BYTES = 2**30
"""Room for 16 sequences of `MAX_TOKENS` even where every head keeps its own keys and values in float32."""


def main(folder: str, dtype: str, new_tokens: int) -> None:
    # vLLM and its compiler print; the answers have the standard output to themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    vllm = importlib.import_module("vllm")
    model = vllm.LLM(
        folder,
        skip_tokenizer_init=True,
        dtype=dtype,
        max_model_len=MAX_TOKENS,
        max_num_seqs=MAX_SEQUENCES,
        kv_cache_memory_bytes=CACHE_BYTES,
        enable_prefix_caching=False,
    )
    greedy = vllm.SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    for line in sys.stdin:
        prompts = [{"prompt_token_ids": prompt} for prompt in json.loads(line)]
        results = model.generate(prompts, greedy, use_tqdm=False)
        tokens = [list(result.outputs[0].token_ids) for result in results]
        print(json.dumps(tokens), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
