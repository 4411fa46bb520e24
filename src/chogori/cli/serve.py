"""`chogori serve --model MODEL`: OpenAI's and Anthropic's APIs over the built-in engine or a server elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from chogori.cli.local_model import LocalBackend, ModelName
from chogori.engine.config import EngineConfig
from chogori.errors import ConfigError
from chogori.serve.backend import Backend
from chogori.serve.gateway.config import HttpBackendConfig, RepairConfig
from chogori.serve.settings import ServeSettings

ADDRESS_PREFIXES = ("http://", "https://")


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """What `chogori serve` takes."""

    model: str
    """Folder of a run, such as runs/nano; a Hugging Face folder; a preset with random weights, such as tiny:random; or
    the address of an OpenAI-compatible server, such as http://127.0.0.1:8001/v1, to stand in front of."""
    context_length: int | None = None
    """Longest context in tokens; None for the model's own. Random weights can be read at any length. At an address it
    is what clients are told where the server does not say."""
    once: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Answer one request of a client over the network, print it, and stop."""
    settings: Annotated[ServeSettings, tyro.conf.arg(name="")] = field(default_factory=ServeSettings)
    engine: EngineConfig = field(default_factory=EngineConfig)
    backend: HttpBackendConfig = field(default_factory=HttpBackendConfig)
    repair: RepairConfig = field(default_factory=RepairConfig)


def main(arguments: Sequence[str]) -> int:
    """Run `chogori serve` with `arguments` and return the exit status."""
    options = parse(arguments)
    backend = _remote(options) if options.model.startswith(ADDRESS_PREFIXES) else _local(options)
    # Lazily: --help and what is refused above do without the web framework.
    from chogori.cli.server_session import serve

    return serve(backend, options.settings, once=options.once)


def _local(options: ServeArguments) -> Backend:
    for name, given, default in (
        ("backend", options.backend, HttpBackendConfig()),
        ("repair", options.repair, RepairConfig()),
    ):
        if given != default:
            raise ConfigError(f"{name} is for a server at an address; model is {options.model!r}")
    name = ModelName.parse(options.model)
    return LocalBackend(name, name.sizes(options.context_length), options.engine)


def _remote(options: ServeArguments) -> Backend:
    if options.engine != EngineConfig():
        raise ConfigError(f"engine is for a model on this machine; model is the address {options.model!r}")
    # Lazily: a local model needs no HTTP client.
    from chogori.serve.gateway.http_backend import HttpBackend

    return HttpBackend(options.model, options.backend, repair=options.repair, context_length=options.context_length)


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
