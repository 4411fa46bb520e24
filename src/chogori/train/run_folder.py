"""A run is a folder: what was asked, where it ran, what was measured, and the weights. Loads no torch.

config.json        the config as resolved; `load_config` gives back an equal TrainConfig
environment.json   one entry per launch: revision, versions, processor, measured peak
metrics.jsonl      one line per step and per evaluation, each step once
budget.json        only under a time limit: the last step, once decided
data/              prepared text (unless `data_folder` says otherwise)
tokenizer/         loads in transformers
checkpoints/       step-0000100/ …, each a Hugging Face model folder with the training state beside
model/             the finished model with its tokenizer; its presence says that the run is complete
samples.json, evaluation.json, plots/, report.html
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from chogori.durable_files import disk_errors, write_text_atomically
from chogori.errors import ConfigError, RunError
from chogori.train.config import RESUMABLE_CHANGES, TrainConfig
from chogori.train.config_json import differing_fields, from_json, to_json


@dataclass(frozen=True)
class RunFolder:
    """Names of the parts of one run. Creating the object touches no file."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def budget_file(self) -> Path:
        return self.path / "budget.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.json"

    @property
    def evaluation_file(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def is_complete(self) -> bool:
        """Whether every step was taken and the finished model written."""
        return self.model.is_dir()

    def data_folder(self, config: TrainConfig) -> Path:
        return self.path / "data" if config.data_folder is None else config.data_folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises RunError when `path` is missing or something else."""
        run = cls(Path(path))
        if not run.path.exists():
            raise RunError(f"{path} does not exist; expected the folder of a run, such as runs/nano")
        if not run.config_file.is_file():
            raise RunError(f"{path} is not the folder of a training run: it has no config.json")
        return run

    def load_config(self) -> TrainConfig:
        """The config that the run was started with. Raises RunError when the file is not one of a run."""
        try:
            return from_json(TrainConfig, json.loads(self.config_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:  # ConfigError is a ValueError, and so is damaged JSON
            what = str(error) if isinstance(error, ConfigError) else f"not a config: {error}"
            raise RunError(
                f"{self.config_file} is not the config of a training run of this version ({what})"
            ) from error

    def start(self, config: TrainConfig) -> list[str]:
        """Write the config of a new run, or check that `config` continues the run that is here.

        Returns remarks for the user. Raises RunError naming the fields that differ where a difference would make the
        continued run another run. Call it under `lock`.
        """
        if not self.config_file.exists():
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if strangers:
                raise RunError(
                    f"{self.path} holds something else ({', '.join(strangers[:3])}); choose an empty or new --out"
                )
            self._write_config(config)
            return []
        old = self.load_config()
        changes = differing_fields(to_json(old), to_json(config))
        refused = [change for change in changes if change[0].split(".")[0] not in RESUMABLE_CHANGES]
        if refused:
            listed = "; ".join(f"{name} was {before!r} and is now {now!r}" for name, before, now in refused)
            raise RunError(
                f"{self.path} holds a run of another config: {listed}. Give the same values to continue it, or another "
                "--out to start a new run"
            )
        remarks = [f"{name} was {before!r} and is now {now!r}" for name, before, now in changes if name != "out"]
        if remarks:
            self._write_config(config)
        return remarks

    def _write_config(self, config: TrainConfig) -> None:
        write_text_atomically(self.config_file, json.dumps(to_json(config), indent=2) + "\n")

    def environments(self) -> list[dict[str, object]]:
        """One record per launch, oldest first."""
        if not self.environment_file.exists():
            return []
        return cast("list[dict[str, object]]", json.loads(self.environment_file.read_text(encoding="utf-8")))

    def add_environment(self, record: dict[str, object]) -> None:
        text = json.dumps([*self.environments(), record], indent=2) + "\n"
        write_text_atomically(self.environment_file, text)

    def write_json(self, path: Path, value: object) -> None:
        write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def lock(self) -> RunLock:
        """The right to train into this run; creates the folder. Use as a context manager."""
        return RunLock(self.path)


class RunLock:
    """An advisory lock of the operating system: it ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        with disk_errors(f"create {self._path}"):
            if self._path.exists() and not self._path.is_dir():
                raise RunError(f"{self._path} is a file; expected a folder for the run; choose another --out")
            self._path.mkdir(parents=True, exist_ok=True)
            file = (self._path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RunError(
                f"{self._path} is being trained by {holder}; wait for it to end, stop it, or choose another --out"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


PACKAGES = "chogori torch numpy tokenizers safetensors".split()


def describe_environment() -> dict[str, object]:
    """Revision, versions and machine of this launch, as far as they are known without torch."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "revision": _git_revision(),
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
        "num_cpus": os.cpu_count(),
    }


def _git_revision() -> str | None:
    """Commit of the source tree that runs, with "+changes" when it was edited; None for an installed package."""
    here = Path(__file__).resolve()
    commands = (
        ["git", "ls-files", "--error-unmatch", here.name],  # fails in an unrelated repository around an installation
        ["git", "rev-parse", "HEAD"],
        ["git", "status", "--porcelain", "--untracked-files=no", "."],
    )
    try:
        _, commit, changes = (
            subprocess.run(
                command, cwd=here.parent, capture_output=True, text=True, check=True, timeout=5
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
