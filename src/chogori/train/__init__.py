"""Training: one loop from prepared text to a finished model, and the folder that a run leaves behind.

Owns the run folder, checkpoints that a kill cannot spoil, metrics, held-out evaluation, progress, plots, report and
sampling; never defines a model, an optimizer or a format of text. Read `config`, then `launch` (the life of a run),
`loop` (one step), `checkpoint`.
"""

from typing import TYPE_CHECKING

from chogori._lazy import lazy_exports

if TYPE_CHECKING:
    from chogori.train.config import ScheduleConfig, TrainConfig
    from chogori.train.launch import RunResult, train
    from chogori.train.report import write_report
    from chogori.train.run_folder import RunFolder
    from chogori.train.sampling import Sampler
    from chogori.train.saved_run import evaluate_run

__all__ = [
    "RunFolder",
    "RunResult",
    "Sampler",
    "ScheduleConfig",
    "TrainConfig",
    "evaluate_run",
    "train",
    "write_report",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "RunFolder": "run_folder",
        "RunResult": "launch",
        "Sampler": "sampling",
        "ScheduleConfig": "config",
        "TrainConfig": "config",
        "evaluate_run": "saved_run",
        "train": "launch",
        "write_report": "report",
    },
)
