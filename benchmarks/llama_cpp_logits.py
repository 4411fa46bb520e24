"""What llama.cpp makes of a GGUF file: run by an interpreter that has llama-cpp-python, which need not have torch.

    PYTHON benchmarks/llama_cpp_logits.py FILE.gguf REQUEST.json RESULT.npz

The request holds `prompts` (lists of ids), `new_tokens` and `texts`; the result, for each prompt, the logits of every
position and the greedy continuation, and for each text its ids. Exit status 3 means that llama_cpp is not installed.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

NOT_INSTALLED = 3


def main(gguf: str, request_file: str, result_file: str) -> int:
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except ModuleNotFoundError:
        return NOT_INSTALLED
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    prompts, new_tokens = request["prompts"], request["new_tokens"]
    model = llama_cpp.Llama(
        gguf,
        n_ctx=max(map(len, prompts)) + new_tokens,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        # Its cache is f16 unless told, which alone moves logits by some 5e-4.
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    result: dict[str, Any] = {}
    for number, prompt in enumerate(prompts):
        model.reset()
        model.eval(prompt)
        result[f"logits_{number}"] = model.scores[: len(prompt)].copy()
        ids: list[int] = []
        while len(ids) < new_tokens:
            ids.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(ids[-1:])
        result[f"greedy_{number}"] = np.array(ids)
    for number, text in enumerate(request["texts"]):
        ids = model.tokenize(text.encode(), add_bos=False, special=False)
        result[f"ids_{number}"] = np.array(ids, dtype=np.int64)
    np.savez(result_file, **result)
    model.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
