"""Entry point: finds the verb, runs it, and turns every expected failure into one message and an exit status.

Exit status: 0 done; 1 the work failed; 2 what was typed cannot be; 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence

from chogori import __version__
from chogori.errors import ChogoriError, ConfigError

VERBS = {
    "train": "Train a model by a recipe, or continue a run",
    "sample": "Continue a prompt with a trained model, or talk to it line by line",
    "export": "Write a model as llama.cpp or transformers, vLLM and SGLang read it",
    "report": "Draw the plots and the report of a run anew",
    "serve": "Serve a model by OpenAI's and Anthropic's APIs",
    "keys": "Create, list and revoke the keys of a server's clients",
    "usage": "Show what was used and what it costs, by key, model or day",
    "prices": "Show or check the table of prices",
    "chat": "Talk to a model in the terminal",
    "deploy": "Size a model for GPUs, and write or start what serves it",
}

# Packages that only the "train" extra installs.
TRAIN_PACKAGES = frozenset({"torch", "safetensors", "gguf", "matplotlib", "zstandard"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (those of the process by default) and return the exit status."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if not typed or typed[0] in ("-h", "--help"):
        print(usage())
        return 0
    if typed[0] == "--version":
        print(f"chogori {__version__}")
        return 0
    try:
        if typed[0] not in VERBS:
            raise ConfigError(f"no command is named {typed[0]!r}{did_you_mean(typed[0], VERBS)}; see chogori --help")
        return importlib.import_module(f"chogori.cli.{typed[0]}").main(typed[1:])
    except ChogoriError as error:
        complain(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_PACKAGES:
            raise
        complain(f"chogori {typed[0]} needs the package {error.name}; install it with: pip install 'chogori[train]'")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def usage() -> str:
    """What `chogori --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {purpose}" for verb, purpose in VERBS.items()]
    return "\n".join(
        [
            "usage: chogori COMMAND …",
            "",
            "The Kimi K2 system: model, MuonClip, training from raw text.",
            "",
            *lines,
            "",
            "chogori COMMAND --help says more. To start: chogori train nano",
        ]
    )


def complain(message: str) -> None:
    """One message to stderr, in red where that is a terminal."""
    from rich.console import Console  # lazily: a command that succeeds may never print through it
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), (message, "red")))


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """ "; did you mean 'train'?", or nothing when no known name is near."""
    close = difflib.get_close_matches(asked, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
