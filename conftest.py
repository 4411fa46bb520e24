"""Settings of every test, and the README and docs/ as tests: each Python block runs, each page in its own folder.

Loads no torch.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

# Read by torch when it is first imported, here or in a subprocess. One thread: the tensors of tests are small, and the
# workers of pytest-xdist share the cores; OpenMP threads that wait for a busy core make a test many times slower.
os.environ["OMP_NUM_THREADS"] = "1"
# No test needs the network, and none may use it by accident.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

# The same examples in every run, and no deadline: speed is measured in benchmarks/, never asserted.
settings.register_profile("chogori", deadline=None, derandomize=True, database=None)
settings.load_profile("chogori")


def enter_scratch_folder(namespace: dict[str, Any]) -> None:
    """Blocks of one page share names and may write files; neither reaches another page or the working tree."""
    namespace["_scratch"] = tempfile.TemporaryDirectory(prefix="chogori-docs-")
    namespace["_came_from"] = Path.cwd()
    os.chdir(namespace["_scratch"].name)


def leave_scratch_folder(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_came_from"])
    namespace["_scratch"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "README.ja.md", "docs/*.md"],
    setup=enter_scratch_folder,
    teardown=leave_scratch_folder,
).pytest()
