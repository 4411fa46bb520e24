"""`chogori report RUN`: draws the plots and report.html of a run anew, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from chogori.train.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """What `chogori report` takes."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, such as runs/nano."""


def main(arguments: Sequence[str]) -> int:
    """Run `chogori report` with `arguments` and return the exit status."""
    folder = RunFolder.open(parse(arguments).run)
    from chogori.train.report import write_report  # lazily: loads matplotlib

    print(write_report(folder))
    return 0


def parse(arguments: Sequence[str]) -> ReportArguments:
    """Read `RUN`. Exits with status 2 on anything else."""
    return tyro.cli(
        ReportArguments,
        args=list(arguments),
        prog="chogori report",
        description="Draw the plots and report.html of a run anew.",
    )
