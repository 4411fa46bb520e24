"""Exported GGUF files in llama.cpp: the same logits, the same greedy tokens, the same ids of texts.

    python benchmarks/llama_cpp_parity.py [--llama-python PYTHON] [--config NAME]

PYTHON is an interpreter that has llama-cpp-python; without one a line says that nothing was checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from llama_cpp_logits import NOT_INSTALLED

from chogori.chat.language_samples import SAMPLES
from chogori.chat.tokenizer import Tokenizer
from chogori.cli.export import gguf_vocabulary
from chogori.model import K2Config, K2Model, YarnConfig, generate
from chogori.model.gguf_export import save_gguf

RELATIVE_TOLERANCE = 1e-3
"""Of logits, against the largest of a position: float32 sums of some thousand terms in another order."""
NEW_TOKENS = 32
VOCABULARY = 2_048
"""Enough for every word of the texts to become one token, so that each wrong split shows."""

_TINY = K2Config.preset("tiny").replace(vocab_size=VOCABULARY + 8)
ENGINE = K2Config(
    vocab_size=VOCABULARY,
    hidden_size=512,
    dense_ffn_size=1024,
    expert_ffn_size=256,
    num_layers=6,
    num_heads=8,
    num_experts=16,
    num_experts_per_token=4,
    q_lora_rank=256,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
CONFIGS = {
    "tiny": _TINY,
    "engine": ENGINE,
    "without q_lora": _TINY.replace(q_lora_rank=None),
    "without q_lora, as many layers as Moonlight": _TINY.replace(q_lora_rank=None, num_layers=27),
    "yarn": _TINY.replace(yarn=YarnConfig(factor=32.0, original_max_position_embeddings=16)),
    "yarn, other corrections": _TINY.replace(
        yarn=YarnConfig(factor=8.0, original_max_position_embeddings=16, beta_fast=4.0, mscale=0.7, mscale_all_dim=0.7)
    ),
    "expert groups": _TINY.replace(num_expert_groups=4, num_groups_per_token=2),
    "two shared experts, weights not normalised": _TINY.replace(
        num_shared_experts=2, normalize_routing_weights=False, num_dense_layers=0
    ),
}
TEXTS = (
    *SAMPLES.values(),
    "def f(x: int) -> dict[str, float]:\n    return {'a': x ** 2, \"b\": 3.14159}  # ½ naïve\r\n\r\n\tif x:\n\t\tpass",
    "吾輩は猫である。名前はまだ無い。カタカナとひらがな、ＡＢＣ１２３、㍿",
    "我能吞下玻璃而不伤身体。《红楼梦》第１回，共120回。",
    "👩‍👩‍👧‍👦 🏔️ K2 is 8,611 m 🇵🇰🇨🇳 — “quoted”… 1234567890 12 345",
    "camelCase HTTPServer don't DON'T we'll I'M   spaces  \n\n \n  trailing   ",
    "<|im_end|> spelt out, and <|tool_call_begin|>functions.f:0, are text; [BOS] too",
    "Ελληνικά Русский العربية 한국어 Tiếng Việt \u200b\u00a0",
)
OTHERWISE_SPLIT = (
    "人々は時々、佐々木さんの話を聞いた。",
    "〇一二三、二〇二五年",
    "か\u3099き\u3099 cafe\u0301",
    "हिन्दी में ภาษาไทย",
)
"""llama.cpp splits these unlike K2's own tokenizer: to it 々 and 〇 are not Han, and combining marks are no letters. It
finds only the parts of longer tokens with them, for the official K2 files as for ours."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How llama.cpp and the model that wrote the file compare."""

    largest_difference: float
    """Of any logit, relative to the largest of its position."""
    greedy_equal: bool
    """Whether all greedy continuations are the same."""
    differing_texts: tuple[str, ...]
    """Of `TEXTS`, those that llama.cpp encodes to other ids."""
    num_otherwise_split: int
    """Of `OTHERWISE_SPLIT`, how many it encodes to other ids."""


def llama_cpp_parity(
    model: K2Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], *, python: str = sys.executable
) -> Parity | None:
    """Export `model` in float32 and ask llama.cpp for logits, greedy tokens and ids; None, and a printed line, where
    `python` has no llama-cpp-python."""
    with tempfile.TemporaryDirectory() as folder:
        file, request, result = (Path(folder) / name for name in ("model.gguf", "request.json", "result.npz"))
        save_gguf(model, file, vocabulary=gguf_vocabulary(tokenizer), name="parity", dtype="f32")
        asked = {
            "prompts": [list(prompt) for prompt in prompts],
            "new_tokens": NEW_TOKENS,
            "texts": TEXTS + OTHERWISE_SPLIT,
        }
        request.write_text(json.dumps(asked), encoding="utf-8")
        worker = Path(__file__).with_name("llama_cpp_logits.py")
        status = subprocess.run([python, str(worker), str(file), str(request), str(result)]).returncode
        if status == NOT_INSTALLED:
            print(f"llama.cpp: not checked; {python} has no llama_cpp (pip install llama-cpp-python)")
            return None
        if status:
            raise SystemExit(f"llama.cpp did not run the exported file: exit status {status}")
        with np.load(result) as theirs:
            return _compare(model, tokenizer, prompts, dict(theirs))


def _compare(
    model: K2Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], theirs: dict[str, np.ndarray]
) -> Parity:
    largest, greedy_equal = 0.0, True
    for number, prompt in enumerate(prompts):
        tokens_BT = torch.tensor([list(prompt)])
        with torch.inference_mode():
            ours_TV = model(tokens_BT)[0]
        difference_T = (ours_TV - torch.from_numpy(theirs[f"logits_{number}"])).abs().amax(-1) / ours_TV.abs().amax(-1)
        largest = max(largest, difference_T.max().item())
        ours = [int(step) for step in generate(model, tokens_BT, max_new_tokens=NEW_TOKENS)]
        greedy_equal &= ours == theirs[f"greedy_{number}"].tolist()
    differing = [
        text
        for number, text in enumerate(TEXTS + OTHERWISE_SPLIT)
        if tokenizer.encode(text) != theirs[f"ids_{number}"].tolist()
    ]
    return Parity(
        largest_difference=largest,
        greedy_equal=greedy_equal,
        differing_texts=tuple(text for text in differing if text in TEXTS),
        num_otherwise_split=sum(text in OTHERWISE_SPLIT for text in differing),
    )


def scattered_model(config: K2Config) -> K2Model:
    """A model whose attention, router biases and norms all matter; initial weights would hide mistakes in them."""
    model = K2Model(config, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                value.normal_(0.0, 0.2, generator=generator)
            elif "norm" in name:
                value.normal_(1.0, 0.2, generator=generator)
            elif value.ndim > 1:
                value.normal_(0.0, value.shape[-1] ** -0.5, generator=generator)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--config", choices=list(CONFIGS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train([*TEXTS, *OTHERWISE_SPLIT], vocab_size=VOCABULARY)
    failed: list[str] = []
    for name in CONFIGS if arguments.config is None else [arguments.config]:
        model = scattered_model(CONFIGS[name])
        generator = torch.Generator().manual_seed(1)
        prompts = [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in (1, 24, 100)]
        parity = llama_cpp_parity(model, tokenizer, prompts, python=arguments.llama_python)
        if parity is None:
            return
        print(
            f"{name}: logits within {parity.largest_difference:.1e}, greedy tokens "
            f"{'equal' if parity.greedy_equal else 'DIFFER'}, {len(TEXTS) - len(parity.differing_texts)} of "
            f"{len(TEXTS)} texts encode alike, {parity.num_otherwise_split} of {len(OTHERWISE_SPLIT)} known ones do not"
        )
        for text in parity.differing_texts:
            print(f"  other ids for: {text!r}")
        if parity.largest_difference > RELATIVE_TOLERANCE or not parity.greedy_equal or parity.differing_texts:
            failed.append(name)
    if failed:
        raise SystemExit(f"llama.cpp differs: {', '.join(failed)}")


if __name__ == "__main__":
    main()
