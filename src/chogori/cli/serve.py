"""`chogori serve --model MODEL`: OpenAI's and Anthropic's APIs on this machine, over the built-in engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from chogori.cli.local_model import LocalBackend, ModelName
from chogori.engine.config import EngineConfig
from chogori.errors import ConfigError
from chogori.serve.settings import ServeSettings


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """What `chogori serve` takes."""

    model: str
    """Folder of a run, such as runs/nano; a Hugging Face folder; or a preset with random weights, such as
    tiny:random."""
    context_length: int | None = None
    """Longest context in tokens; None for the model's own. Random weights can be read at any length."""
    once: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Answer one request of a client over the network, print it, and stop."""
    settings: Annotated[ServeSettings, tyro.conf.arg(name="")] = field(default_factory=ServeSettings)
    engine: EngineConfig = field(default_factory=EngineConfig)


def main(arguments: Sequence[str]) -> int:
    """Run `chogori serve` with `arguments` and return the exit status."""
    options = parse(arguments)
    name = ModelName.parse(options.model)
    sizes = name.sizes(options.context_length)
    backend = LocalBackend(name, sizes, options.engine)
    # Lazily: --help and what is refused above do without the web framework.
    from chogori.cli.server_session import serve

    return serve(backend, options.settings, once=options.once)


def parse(arguments: Sequence[str]) -> ServeArguments:
    """Read `--model MODEL --port 8000 …`. Raises ConfigError or exits with status 2."""
    options = tyro.cli(
        ServeArguments,
        args=list(arguments),
        prog="chogori serve",
        description="Serve a model by OpenAI's and Anthropic's APIs.",
    )
    if options.context_length is not None and options.context_length < 2:
        raise ConfigError(f"context_length is {options.context_length}; expected at least 2")
    return options
