"""`chogori export gguf|hf RUN OUT`: a trained model as other programs read it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from chogori.chat import special_tokens
from chogori.chat.bpe_ranks import merges_of, to_characters
from chogori.chat.tokenizer import CHAT_TEMPLATE, Tokenizer
from chogori.cli.local_model import is_weight_folder
from chogori.cli.main import did_you_mean
from chogori.cli.quantities import bytes_in_words
from chogori.durable_files import disk_errors
from chogori.errors import ConfigError
from chogori.model.hf_config import ModelType
from chogori.train.run_folder import RunFolder

if TYPE_CHECKING:
    from chogori.model.gguf_vocabulary import GgufVocabulary
    from chogori.model.transformer import K2Model

FORMS = {
    "gguf": "One file for llama.cpp and the programs built on it",
    "hf": "A Hugging Face folder for transformers, vLLM and SGLang",
}


@dataclass(frozen=True, kw_only=True)
class GgufArguments:
    """What `chogori export gguf` takes."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, such as runs/nano, or a Hugging Face folder with its tokenizer."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """File to write, such as nano.gguf."""
    dtype: Literal["bf16", "f16", "f32", "q8_0"] = "bf16"
    """Type of the matrices. q8_0 takes half of bf16; vectors, norms and routers stay f32."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the file when it is there."""


@dataclass(frozen=True, kw_only=True)
class HfArguments:
    """What `chogori export hf` takes."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, such as runs/nano, or a Hugging Face folder with its tokenizer."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write: weights, config.json, tokenizer and chat_template.jinja."""
    dtype: Literal["bf16", "f16", "f32"] | None = None
    """Type of the weights; None for the one they have."""
    model_type: ModelType = "deepseek_v3"
    """deepseek_v3 loads in transformers; kimi_k2, the official name, is for engines that tell the two apart."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the whole folder when it holds a model."""


def main(arguments: Sequence[str]) -> int:
    """Run `chogori export` with `arguments` and return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    options = parse(arguments)
    if isinstance(options, GgufArguments):
        export_gguf(options)
    else:
        export_hf(options)
    return 0


def parse(arguments: Sequence[str]) -> GgufArguments | HfArguments:
    """Read `gguf|hf RUN OUT …`. Raises ConfigError or exits with status 2."""
    form, *rest = arguments
    if form not in FORMS:
        raise ConfigError(f"no form is named {form!r}{did_you_mean(form, FORMS)}; the forms are {', '.join(FORMS)}")
    fields: type[GgufArguments | HfArguments] = GgufArguments if form == "gguf" else HfArguments
    return tyro.cli(fields, args=rest, prog=f"chogori export {form}", description=f"{FORMS[form]}.")


def usage() -> str:
    """What `chogori export --help` prints."""
    width = max(map(len, FORMS))
    return "\n".join(
        [
            "usage: chogori export FORM RUN OUT [--field value …]",
            "",
            "Writes the model of a run, or of a Hugging Face folder, as other programs read it.",
            "",
            *(f"  {form:<{width}}  {purpose}" for form, purpose in FORMS.items()),
            "",
            "chogori export FORM --help lists every field.",
        ]
    )


def export_gguf(options: GgufArguments) -> None:
    """Write the GGUF file. Raises ConfigError where `out` is in the way."""
    out = options.out
    if out.is_dir():
        raise ConfigError(f"out is {out}, a folder; expected a file, such as {out / (_name(options.run) + '.gguf')}")
    if out.exists() and not options.overwrite:
        raise ConfigError(f"out is {out}, which exists; name another file, or replace it with --overwrite")
    _check_source(options.run)
    from chogori.model.gguf_export import save_gguf  # lazily: loads torch

    model, tokenizer = _load(options.run)
    saved = save_gguf(model, out, vocabulary=gguf_vocabulary(tokenizer), name=_name(options.run), dtype=options.dtype)
    print(f"{out}: {saved.num_tensors} tensors, {bytes_in_words(saved.num_bytes)}")
    if saved.left_f16:
        print(
            f"{len(saved.left_f16)} matrices are f16: their rows are no multiple of q8_0's blocks of 32, such as "
            f"{saved.left_f16[0]}"
        )


def export_hf(options: HfArguments) -> None:
    """Write the Hugging Face folder, which takes its place only when it is whole.

    A process killed while it replaces a folder leaves that one whole, as `.NAME.retired-PID`.

    Raises ConfigError where `out` is in the way, or holds anything but a model.
    """
    out = options.out.absolute()
    if out.is_file():
        raise ConfigError(f"out is {options.out}, a file; expected a folder that is empty or not there yet")
    occupied = out.exists() and any(out.iterdir())
    if occupied and not is_weight_folder(out):
        raise ConfigError(f"out is {options.out}, which holds no model but other things; name another folder")
    if occupied and not options.overwrite:
        raise ConfigError(f"out is {options.out}, which holds a model; name another, or replace it with --overwrite")
    _check_source(options.run)
    from chogori.model.weights import DTYPES  # lazily: loads torch

    names = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
    model, tokenizer = _load(options.run)
    staging = out.with_name(f".{out.name}.exporting-{os.getpid()}")
    retired = out.with_name(f".{out.name}.retired-{os.getpid()}")
    try:
        model.save_pretrained(
            staging,
            dtype=None if options.dtype is None else DTYPES[names[options.dtype]],
            model_type=options.model_type,
        )
        tokenizer.save(staging)
        with disk_errors(f"write {options.out}"):
            if occupied:
                out.rename(retired)
            staging.rename(out)
    finally:
        if retired.exists() and not out.exists():
            retired.rename(out)
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
    num_bytes = sum(path.stat().st_size for path in out.iterdir())
    print(f"{options.out}: {', '.join(sorted(path.name for path in out.iterdir()))}; {bytes_in_words(num_bytes)}")


def gguf_vocabulary(tokenizer: Tokenizer) -> GgufVocabulary:
    """A tokenizer as the plain data that a GGUF file holds."""
    from chogori.model.gguf_vocabulary import GgufVocabulary  # lazily: gguf comes with the training packages

    template = tokenizer.files().get(CHAT_TEMPLATE)
    return GgufVocabulary(
        base_tokens=[to_characters(token) for token in sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)],
        special_tokens=list(tokenizer.special_tokens),
        merges=[(to_characters(left), to_characters(right)) for left, right in merges_of(tokenizer.ranks)],
        bos=special_tokens.BOS,
        eos=special_tokens.EOS,
        end_of_turn=special_tokens.IM_END,
        unknown=special_tokens.UNK,
        padding=special_tokens.PAD,
        chat_template=None if template is None else template.decode(),
    )


def _check_source(run: Path) -> None:
    """Refuse what is neither a run nor a weight folder before torch is loaded."""
    if not is_weight_folder(run):
        RunFolder.open(run).load_config()


def _load(run: Path) -> tuple[K2Model, Tokenizer]:
    """The model of a run in float32, or of a folder in the type it is stored in, and its tokenizer."""
    if is_weight_folder(run):
        from chogori.model.transformer import K2Model

        tokenizer = Tokenizer.load(run)
        return K2Model.from_pretrained(run), tokenizer
    from chogori.train.saved_run import open_run

    saved = open_run(run)
    for remark in saved.remarks:
        print(remark, file=sys.stderr)
    if saved.source != saved.folder.model:
        print(f"{run} is not complete; this is its checkpoint {saved.source.name}", file=sys.stderr)
    return saved.model, saved.tokenizer


def _name(run: Path) -> str:
    return run.resolve().name
