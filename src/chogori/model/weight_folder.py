"""The files of a Hugging Face weight folder, seen as one mapping from tensor name to tensor. Nothing is read early.

Knows files, not the model: which tensors ought to be there is decided in `weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from chogori.errors import WeightsError
from chogori.model.weight_files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, read_json

GENERATION_CONFIG_FILE = "generation_config.json"


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _OpenFile(Protocol):
    def __enter__(self) -> _OpenFile: ...
    def __exit__(self, *exception: object) -> None: ...
    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of one tensor before it is read."""

    file: str
    """Name of the file within the folder."""
    shape: tuple[int, ...]
    dtype: str
    """In safetensors' names: F32, BF16, F8_E4M3 …"""


class WeightFolder:
    """An open folder: `config`, `headers` by tensor name, and `read`. Memory-mapped; a context manager.

    Raises WeightsError for a folder without config.json or weights, an index that names what is not there, and a file
    that is truncated or otherwise not safetensors.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise WeightsError(f"{folder} is not a folder; expected one with {CONFIG_FILE} and {SINGLE_FILE}")
        self.folder = folder
        self.config = read_json(folder / CONFIG_FILE)
        self.headers: dict[str, Header] = {}
        self._files: dict[str, _OpenFile] = {}
        with ExitStack() as opening:
            for file in _weight_files(folder):
                self._open(file, opening)
            self._check_index()
            self._opened = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, backed by the mapped file."""
        file = self.headers[name].file
        try:
            return self._files[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.folder / file, error) from error

    def _open(self, file: str, opening: ExitStack) -> None:
        path = self.folder / file
        try:
            opened = opening.enter_context(cast(_OpenFile, safe_open(path, framework="pt", device="cpu")))
            for name in opened.keys():  # noqa: SIM118 (a safetensors file is not a mapping)
                entry = opened.get_slice(name)
                if name in self.headers:
                    raise WeightsError(
                        f"{name} is in both {self.headers[name].file} and {file} of {self.folder}; remove the file "
                        "that does not belong there"
                    )
                self.headers[name] = Header(file=file, shape=tuple(entry.get_shape()), dtype=entry.get_dtype())
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        self._files[file] = opened

    def _check_index(self) -> None:
        if not (self.folder / INDEX_FILE).exists() or (self.folder / SINGLE_FILE).exists():
            return
        for name, file in _weight_map(self.folder).items():
            if name not in self.headers or self.headers[name].file != file:
                raise WeightsError(
                    f"{self.folder / INDEX_FILE} says that {file} holds {name}, and it does not; the index and the "
                    "files are of different downloads or saves"
                )


def _weight_files(folder: Path) -> list[str]:
    # The single file wins over an index, as it does in transformers.
    if (folder / SINGLE_FILE).exists():
        return [SINGLE_FILE]
    if not (folder / INDEX_FILE).exists():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
        found = f"found {', '.join(others[:5])}, which cannot be read" if others else "found no weights"
        raise WeightsError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; {found}")
    files = sorted(set(_weight_map(folder).values()))
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} of the {len(files)} files that {INDEX_FILE} names: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}; download them again"
        )
    return files


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if isinstance(weight_map, Mapping):
        entries = cast(Mapping[object, object], weight_map)
        if entries and all(isinstance(key, str) and isinstance(value, str) for key, value in entries.items()):
            return cast(dict[str, str], dict(entries))
    raise WeightsError(f'{folder / INDEX_FILE} has no "weight_map" from tensor names to file names')


def _unreadable(path: Path, error: Exception) -> WeightsError:
    size = f"{path.stat().st_size:,} bytes" if path.exists() else "missing"
    return WeightsError(f"{path} ({size}) is not a whole safetensors file: {error}; download or save it again")
