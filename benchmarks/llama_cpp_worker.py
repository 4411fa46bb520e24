"""llama.cpp as a contender: run by an interpreter that has llama-cpp-python, which need not have torch.

    PYTHON benchmarks/llama_cpp_worker.py FILE.gguf NEW_TOKENS

Reads one JSON list of prompts (lists of ids of equal length) a line, answers with the greedy continuations. All prompts
of a line are decoded in one batch, as llama.cpp's own server does, on one thread.
"""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np

llama = importlib.import_module("llama_cpp")

MAX_SEQUENCES = 16
MAX_CONTEXT = 16_384


def main(gguf: str, new_tokens: int) -> None:
    llama.llama_backend_init()
    silence = llama.llama_log_callback(lambda *_: None)  # referred to as long as llama.cpp may call it
    llama.llama_log_set(silence, None)
    model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max, settings.n_batch, settings.n_ubatch = MAX_CONTEXT, MAX_SEQUENCES, 2048, 512
    settings.n_threads = settings.n_threads_batch = 1
    settings.kv_unified = True
    if gguf.endswith("f32.gguf"):
        # Its cache is f16 unless told, which would move logits more than float32 does.
        settings.type_k = settings.type_v = llama.GGML_TYPE_F32
        settings.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama.llama_init_from_model(model, settings)
    num_rows = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(settings.n_batch, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run rows of (token, position, sequence, whether its logits are wanted); the greedy tokens of those."""
        chosen: list[int] = []
        for start in range(0, len(rows), settings.n_batch):
            part = rows[start : start + settings.n_batch]
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if llama.llama_decode(context, batch) != 0:
                raise SystemExit("llama_decode failed")
            for i, row in enumerate(part):
                if row[3]:
                    logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (num_rows,))
                    chosen.append(int(logits.argmax()))
        return chosen

    for line in sys.stdin:
        prompts = json.loads(line)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        tokens = [[token] for token in decode(rows)]
        for step in range(new_tokens - 1):
            rows = [(tokens[s][-1], len(prompts[s]) + step, s, True) for s in range(len(prompts))]
            for sequence, token in enumerate(decode(rows)):
                tokens[sequence].append(token)
        print(json.dumps(tokens), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
