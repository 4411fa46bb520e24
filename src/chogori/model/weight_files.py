"""The names of the files in a Hugging Face weight folder, and the reader of its JSON ones. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from chogori.errors import WeightsError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a weight folder. Raises WeightsError when it is missing or is not one."""
    try:
        value = cast(object, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise WeightsError(f"{path.parent} has no {path.name}; expected a Hugging Face weight folder") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds {type(value).__name__}; expected a JSON object")
    return cast(dict[str, object], value)
