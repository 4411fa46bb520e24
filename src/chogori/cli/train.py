"""`chogori train RECIPE`: reads a recipe's fields from the command line, then trains, continues, or only plans."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from chogori.cli.main import did_you_mean
from chogori.cli.quantities import count_in_words
from chogori.errors import ConfigError
from chogori.model.accounting import count_parameters
from chogori.recipes import RECIPES
from chogori.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainArguments(TrainConfig):
    """The fields of a run, and what the command line adds to them."""

    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print parameters, FLOPs, memory and expected time, and train nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What was typed after `chogori train`."""

    config: TrainConfig
    dry_run: bool


def main(arguments: Sequence[str]) -> int:
    """Run `chogori train` with `arguments` and return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    request = parse(arguments)
    if request.dry_run:
        from chogori.cli.plan import print_plan  # lazily: --help does without the table library

        print_plan(request.config)
        return 0
    return run(request.config)


def parse(arguments: Sequence[str]) -> TrainRequest:
    """Read `RECIPE --field value …` or `--from RUN --out DIR …`. Raises ConfigError or exits with status 2."""
    name, *rest = arguments
    if name == "--from":
        if not rest or rest[0].startswith("-"):
            raise ConfigError(
                "--from names no run; expected a folder, such as: chogori train --from runs/nano --out runs/again"
            )
        from chogori.train.run_folder import RunFolder  # lazily: only --from reads a run

        source, *rest = rest
        default = RunFolder.open(Path(source)).load_config()
        asks_for_help = bool({"-h", "--help"} & set(rest))
        if not asks_for_help and not any(argument.split("=")[0] == "--out" for argument in rest):
            raise ConfigError(
                f"--from {source} trains a new run by the config of that one; say where, such as --out {source}-again "
                "(to continue the run itself, repeat the command that started it)"
            )
        program = f"chogori train --from {source}"
        purpose = f"A new run by the config of {source}."
    elif name.startswith("-"):
        raise ConfigError(f"chogori train begins with a recipe, found {name}; expected one of {', '.join(RECIPES)}")
    elif name not in RECIPES:
        raise ConfigError(
            f"no recipe is named {name!r}{did_you_mean(name, RECIPES)}; the recipes are {', '.join(RECIPES)}"
        )
    else:
        default = RECIPES[name]()
        program = f"chogori train {name}"
        purpose = _purpose(name)
    return _parse_fields(default, rest, program=program, purpose=purpose)


def run(config: TrainConfig) -> int:
    """Train `config` with a live display; 0 when it is complete, 130 when it was interrupted."""
    # Lazily: both load torch, and --help, --dry-run and typing errors must not wait for it.
    from chogori.train.launch import train
    from chogori.train.progress import Progress

    try:
        with Progress() as display:
            result = train(config, listeners=[display])
    except KeyboardInterrupt:
        # Outside the steps, such as while text is prepared, or pressed twice: training had no time to say so itself.
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0 if result.reason == "completed" else 130


def usage() -> str:
    """What `chogori train --help` prints."""
    width = max(map(len, RECIPES))
    lines: list[str] = []
    for name, recipe in RECIPES.items():
        count = count_parameters(recipe().model)
        lines.append(f"  {name:<{width}}  {_purpose(name)}")
        lines.append(
            f"  {'':<{width}}  {count_in_words(count.total)} parameters, {count_in_words(count.active)} active"
        )
    return "\n".join(
        [
            "usage: chogori train RECIPE [--field value …]",
            "       chogori train --from RUN --out DIR [--field value …]",
            "",
            "Trains into the folder --out, or continues the run that is there. Ctrl-C saves; the same command goes on.",
            "",
            *lines,
            "",
            "chogori train RECIPE --help lists every field. --dry-run prints sizes, memory and expected time only.",
        ]
    )


def _purpose(name: str) -> str:
    """First line of the recipe's docstring."""
    text = RECIPES[name].__doc__
    assert text, f"recipe {name} has no docstring"
    return text.splitlines()[0]


def _parse_fields(default: TrainConfig, arguments: Sequence[str], *, program: str, purpose: str) -> TrainRequest:
    names = {argument.split("=")[0] for argument in arguments}
    # A length given in one unit replaces the recipe's length in the other.
    if "--tokens" in names and "--steps" not in names:
        default = default.replace(steps=None, tokens=default.total_steps * default.tokens_per_step)
    elif "--steps" in names and "--tokens" not in names:
        default = default.replace(tokens=None, steps=default.total_steps)
    fields = {field.name: getattr(default, field.name) for field in dataclasses.fields(TrainConfig)}
    parsed = tyro.cli(
        # Without a sub-command per optional record: a recipe decides which records there are, fields change them.
        tyro.conf.AvoidSubcommands[TrainArguments],
        default=TrainArguments(**fields),
        args=list(arguments),
        prog=program,
        description=purpose,
    )
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(TrainConfig)}
    return TrainRequest(config=TrainConfig(**values), dry_run=parsed.dry_run)
