"""`chogori sample RUN`: continues a prompt, or asks for one prompt after another where stdin is a terminal."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from chogori.errors import ChogoriError, ConfigError
from chogori.train.run_folder import RunFolder

if TYPE_CHECKING:
    from chogori.train.sampling import Sampler


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """What `chogori sample` takes."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, such as runs/nano. An unfinished run speaks through its newest checkpoint."""
    prompt: str | None = None
    """Text to continue. Without it: a prompt line where stdin is a terminal, else the prompts of the run's config."""
    max_tokens: int = 200
    """Tokens to draw at most."""
    temperature: float = 0.8
    """0 always takes the likeliest token; 1 draws from the model's own distribution."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int | None = None
    """Draw from this many likeliest tokens; None for all."""
    seed: int | None = None
    """One seed, one text; None draws anew each time."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; expected at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}; expected 0 or more, such as 0.8")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected above 0 and at most 1, such as 0.95")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is {self.top_k}; expected at least 1, or None for all tokens")


def main(arguments: Sequence[str]) -> int:
    """Run `chogori sample` with `arguments` and return the exit status."""
    options = parse(arguments)
    prompts = RunFolder.open(options.run).load_config().sample_prompts  # refuses what is no run before torch is loaded
    from chogori.train.sampling import Sampler  # lazily: loads torch

    sampler = Sampler.open(options.run)
    if options.prompt is not None:
        prompts = (options.prompt,)
    elif sys.stdin.isatty():
        _converse(sampler, options)
        return 0
    for prompt in prompts:
        _show(sampler, prompt, options)
    return 0


def parse(arguments: Sequence[str]) -> SampleArguments:
    """Read `RUN --prompt TEXT …`. Raises ConfigError or exits with status 2."""
    return tyro.cli(
        SampleArguments,
        args=list(arguments),
        prog="chogori sample",
        description="Continue a prompt with the model of a run, or talk to it line by line.",
    )


def _show(sampler: Sampler, prompt: str, options: SampleArguments) -> None:
    """Print the prompt and its continuation as it is drawn."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(prompt, style="bold", end="")
    pieces = sampler.stream(
        prompt,
        max_new_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
    )
    for piece in pieces:
        console.file.write(piece)
        console.file.flush()
    console.print("\n")


def _converse(sampler: Sampler, options: SampleArguments) -> None:
    """Ask for prompts until Ctrl-D, Ctrl-C or an empty line. The model continues text: it does not answer."""
    importlib.import_module("readline")  # gives input() a line editor and a history

    print("Type the beginning of a text; the model continues it. An empty line or Ctrl-D ends.")
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not prompt:
            return
        try:
            _show(sampler, prompt, options)
        except KeyboardInterrupt:
            print(" (stopped)\n")
        except ChogoriError as error:
            print(f"error: {error}")
