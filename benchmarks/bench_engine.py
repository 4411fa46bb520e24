"""The engine against transformers' `generate`, and llama.cpp and vLLM where they are at hand: same weights, one thread.

    python benchmarks/bench_engine.py [--rounds 5] [--llama-python PYTHON] [--vllm-python PYTHON [--vllm-preload FILES]]

About 50 M parameters in DeepSeek-V3's shape, random weights, greedy tokens. First all are checked to produce the same
tokens in float32; then they take turns in bfloat16. Further: how much sooner the first token comes when a prefix of
1,000 tokens is shared, and how evenly 64 streams advance. llama.cpp and vLLM run in processes of their own, by an
interpreter that has llama-cpp-python (`--llama-python`) or vLLM's CPU build (`--vllm-python`). llama.cpp reads the
weights that `chogori export gguf` writes. vLLM runs as it does by default, with its kernels for latent attention, and
with `VLLM_MLA_DISABLE=1`, where every head keeps its own keys and values; it recommends to preload OpenMP and tcmalloc
(`--vllm-preload`, as in `LD_PRELOAD`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from llama_cpp_parity import ENGINE, scattered_model
from measurement import Comparison, bar_line, print_rows, timed, write_results

from chogori.chat import SAMPLES, Sampling, Tokenizer
from chogori.cli.export import gguf_vocabulary
from chogori.engine.answer import Ended, Output, Produced, PromptRead
from chogori.engine.config import EngineConfig
from chogori.engine.engine import Engine
from chogori.engine.forward import ServedModel
from chogori.engine.vocabulary import Mask
from chogori.model import K2Model
from chogori.model.gguf_export import save_gguf

CONFIG = ENGINE.replace(vocab_size=320, max_position_embeddings=2048)
NEW_TOKENS = 64
LOADS = ((1, 100), (16, 100), (16, 400))
"""Requests at once, and tokens of each prompt."""
BARS = {(1, 100): {"transformers": 2.5}, (16, 100): {"transformers": 5.0, "llama.cpp": 1.3, "vLLM": 0.8}}
VLLM_FORMS = {"vLLM": "0", "vLLM, MLA disabled": "1"}
"""Names of contenders, and what they set VLLM_MLA_DISABLE to."""
Dtype = Literal["float32", "bfloat16"]
Prompts = Sequence[Sequence[int]]
Tokens = list[list[int]]


class AnyToken:
    """No rules: what is measured is the model."""

    def __init__(self, num_rows: int) -> None:
        self._mask = np.ones(num_rows, dtype=np.bool_)

    def begin(self, room: int) -> bool:
        return True

    def allowed(self, room: int) -> Mask:
        return self._mask

    def accept(self, token: int, room: int) -> int:
        return token


class Ours:
    """The engine, without a server before it."""

    def __init__(self, model: K2Model, *, reuse_prefixes: bool = False) -> None:
        settings = EngineConfig(cache_tokens=131_072, num_threads=1, reuse_prefixes=reuse_prefixes)
        self.engine = Engine(ServedModel(model), frozenset(), settings)
        self.engine.start()

    def submit(self, prompt: Sequence[int], new_tokens: int) -> Future[list[tuple[float, Output]]]:
        outputs: list[tuple[float, Output]] = []
        answer: Future[list[tuple[float, Output]]] = Future()

        def sink(output: Output) -> None:
            outputs.append((time.perf_counter(), output))
            if isinstance(output, Ended):
                answer.set_result(outputs)

        sampling = Sampling(max_tokens=new_tokens, temperature=0)
        self.engine.submit(prompt, sampling, AnyToken(CONFIG.vocab_size), sink)
        return answer

    def __call__(self, prompts: Prompts) -> Tokens:
        answers = [self.submit(prompt, NEW_TOKENS) for prompt in prompts]
        return [[output.token for _, output in answer.result() if isinstance(output, Produced)] for answer in answers]


def transformers_generate(folder: str, dtype: torch.dtype) -> Callable[[Prompts], Tokens]:
    from transformers import DeepseekV3ForCausalLM

    model: Any = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def generate(prompts: Prompts) -> Tokens:
        tokens = torch.tensor(prompts)
        with torch.inference_mode():
            result = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
        return result[:, tokens.shape[1] :].tolist()

    return generate


class Worker:
    """A contender in a process of its own: llama_cpp_worker.py or vllm_worker.py."""

    def __init__(self, python: str, script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._name = script
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __call__(self, prompts: Prompts) -> Tokens:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([list(prompt) for prompt in prompts]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._name} ended without an answer: exit status {self._process.wait(timeout=60)}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def start_workers(arguments: argparse.Namespace, model: K2Model, folder: str, dtype: Dtype) -> dict[str, Worker]:
    """Those contenders for which an interpreter was given; `folder` holds the weights of `model`."""
    workers: dict[str, Worker] = {}
    if arguments.llama_python:
        gguf = export_gguf(model, folder, dtype)
        workers["llama.cpp"] = Worker(arguments.llama_python, "llama_cpp_worker.py", str(gguf), str(NEW_TOKENS))
    if arguments.vllm_python:
        # In one process: vLLM's usual three pass messages by polling, which would cost the others' turns a third of a
        # core. Chosen for it before it starts, since OpenMP reads its settings when it is loaded.
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        if arguments.vllm_preload:
            environment["LD_PRELOAD"] = arguments.vllm_preload
        for name, disabled in VLLM_FORMS.items():
            workers[name] = Worker(
                arguments.vllm_python,
                "vllm_worker.py",
                folder,
                dtype,
                str(NEW_TOKENS),
                environment={**environment, "VLLM_MLA_DISABLE": disabled},
            )
    return workers


def random_prompts(count: int, length: int, generator: torch.Generator) -> Prompts:
    return torch.randint(CONFIG.vocab_size, (count, length), generator=generator).tolist()


def speed_of_the_first_token(ours: Ours, generator: torch.Generator, rounds: int) -> tuple[float, float]:
    """Median seconds to the first token of prompts of 1,020 tokens: with 1,000 in the cache, and with none."""
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(rounds):
        prefix = random_prompts(1, 1_008, generator)[0]
        for index, times in enumerate((cold, warm)):
            tail = random_prompts(1, 20, generator)[0]
            start = time.perf_counter()
            seen = ours.submit([*prefix, *tail], 1).result()
            times.append(next(at for at, output in seen if isinstance(output, Produced)) - start)
            read = next(output for _, output in seen if isinstance(output, PromptRead))
            assert read.cached_tokens == (0, 1_008)[index], read
    return statistics.median(warm), statistics.median(cold)


def evenness_of_streams(ours: Ours, generator: torch.Generator) -> tuple[float, float, float]:
    """64 requests at once: output tokens/s, and the median and largest pause between two tokens of one stream."""
    start = time.perf_counter()
    answers = [ours.submit(prompt, NEW_TOKENS) for prompt in random_prompts(64, 100, generator)]
    pauses: list[float] = []
    end = start
    for answer in answers:
        times = [at for at, output in answer.result() if isinstance(output, Produced)]
        pauses += [later - earlier for earlier, later in itertools.pairwise(times)]
        end = max(end, times[-1])
    return 64 * NEW_TOKENS / (end - start), statistics.median(pauses), max(pauses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama-python", help="an interpreter that can import llama_cpp")
    parser.add_argument("--vllm-python", help="an interpreter that can import vllm, built for processors")
    parser.add_argument("--vllm-preload", metavar="FILES", help="libraries that vLLM starts with, separated by colons")
    arguments = parser.parse_args()
    if arguments.vllm_preload and not arguments.vllm_python:
        parser.error("--vllm-preload needs --vllm-python")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = scattered_model(CONFIG)
        model.save_pretrained(folder)
        check_tokens(model, folder, start_workers(arguments, model, folder, "float32"), generator)
        model.compute_dtype = torch.bfloat16
        workers = start_workers(arguments, model, folder, "bfloat16")
        contenders: dict[str, Callable[[Prompts], Tokens]] = {
            "chogori": Ours(model),
            "transformers": transformers_generate(folder, torch.bfloat16),
            **workers,
        }
        rows: list[dict[str, object]] = []
        for load in LOADS:
            comparison = compare(contenders, load, arguments.rounds, generator)
            for name, wanted in BARS.get(load, {}).items():
                if name in contenders:
                    print(f"{load[0]} × ({load[1]} → {NEW_TOKENS}): {bar_line(comparison, 'chogori', name, wanted)}")
            prefix = f"{load[0]} × ({load[1]} → {NEW_TOKENS} tokens): "
            rows += [{**row, "name": f"{prefix}{row['name']}"} for row in comparison.rows("chogori")]
        for worker in workers.values():
            worker.close()
    warm_s, cold_s = speed_of_the_first_token(Ours(model, reuse_prefixes=True), generator, max(arguments.rounds, 5))
    rate, pause_s, longest_s = evenness_of_streams(Ours(model), generator)
    note = (
        f"First token of a prompt of 1,028 tokens: {1000 * cold_s:.0f} ms, with 1,008 of them in the cache "
        f"{1000 * warm_s:.0f} ms, {cold_s / warm_s:.0f} times sooner. 64 streams at once: {rate:.0f} tokens/s, "
        f"{1000 * pause_s:.0f} ms between two tokens of a stream, {1000 * longest_s:.0f} ms at most. All produce the "
        "same tokens in float32; measured in bfloat16."
    )
    if arguments.vllm_python:
        note += (
            " vLLM through its `LLM` class, without a server and without prefix caching; MLA disabled means that every "
            "head keeps its own keys and values."
        )
    print_rows(rows, "tokens/s")
    print(note)
    write_results(
        "engine",
        title="Engine, 50 M parameters, bfloat16, output tokens/s, one thread",
        command="python benchmarks/bench_engine.py",
        unit="tokens/s",
        rows=rows,
        note=note,
    )


def compare(
    contenders: dict[str, Callable[[Prompts], Tokens]],
    load: tuple[int, int],
    rounds: int,
    generator: torch.Generator,
) -> Comparison:
    comparison = Comparison(unit="tokens/s", higher_is_better=True)
    for turn in range(rounds + 1):
        prompts = random_prompts(*load, generator)
        # One compute thread each: what ours uses more is its engine's thread handing tokens out.
        samples = {name: timed(partial(run, prompts)) for name, run in contenders.items()}
        if turn:
            comparison.add_turn(
                {
                    name: (
                        load[0] * NEW_TOKENS / sample.elapsed_s,
                        0.0 if isinstance(contenders[name], Worker) else sample.others_share,
                    )
                    for name, sample in samples.items()
                }
            )
    return comparison


def check_tokens(model: K2Model, folder: str, workers: Mapping[str, Worker], generator: torch.Generator) -> None:
    """Close `workers`; raise SystemExit unless all produce the same greedy tokens from float32 weights."""
    prompts = random_prompts(4, 50, generator)
    ours = Ours(model)
    results = {"chogori": ours(prompts), "transformers": transformers_generate(folder, torch.float32)(prompts)}
    ours.engine.stop()
    for name, worker in workers.items():
        results[name] = worker(prompts)
        worker.close()
    for name, tokens in results.items():
        if tokens != results["chogori"]:
            raise SystemExit(f"{name} produces other tokens from the same weights; the comparison means nothing")


def export_gguf(model: K2Model, folder: str, dtype: Dtype) -> Path:
    """The weights as llama.cpp reads them, with a vocabulary that nobody reads."""
    short = "f32" if dtype == "float32" else "bf16"
    path = Path(folder) / f"{short}.gguf"
    tokenizer = Tokenizer.train(SAMPLES.values(), vocab_size=CONFIG.vocab_size)
    save_gguf(model, path, vocabulary=gguf_vocabulary(tokenizer), name="engine", dtype=short)
    return path


if __name__ == "__main__":
    main()
